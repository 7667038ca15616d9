"""Converts the weights of a PyTorch network to a network checkpoint.

python -m kdjax convert --source FILE --model pspnet_r101 --num_classes 19 --output DIR

FILE is a `.pth` or a `.safetensors` file of mmsegmentation, torchvision (`deeplabv3_resnet101`),
HuggingFace's SegFormer or its authors' (`segformer_linear_b0`, `segformer_b0@nvlabs`), CIRKD or
TorchDistiller (`deeplabv3_r18@cirkd`); or a classifier of images, which becomes the backbone under
fresh heads (`pspnet_r18b`). FILE may be a folder that HuggingFace's `save_pretrained` wrote.
`config.teacher.checkpoint`, `config.student.checkpoint`, and `config.student.backbone` take it.
If the network was not trained with its project's normalization, give --mean and --std, or --bgr.
"""

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
from absl import flags
from flax import nnx

from kdjax import interop
from kdjax.models import NETWORKS, NNXNetwork, Segmenter, create, serialization
from kdjax.models.network import traced_rngs
from kdjax.utils.classes import distinct_colors, numbered_names
from kdjax.utils.errors import UserError

_SOURCE = flags.DEFINE_string(
    "source", None, "The checkpoint file, or a folder of save_pretrained.", required=True
)
_MODEL = flags.DEFINE_string("model", None, "The network, as pspnet_r101.", required=True)
_NUM_CLASSES = flags.DEFINE_integer(
    "num_classes",
    None,
    "How many classes the network scores; by default as many as the source names.",
    lower_bound=1,
    upper_bound=2**16,
)
_CLASS_NAMES = flags.DEFINE_list(
    "class_names", None, "Their names in order, as road,sky, or a file with one in each line."
)
_OUTPUT = flags.DEFINE_string("output", None, "Where the checkpoint is written.", required=True)
_NEW_CLASSIFIER = flags.DEFINE_bool(
    "new_classifier", False, "Start classifiers anew where their number of classes differs."
)
_MEAN = flags.DEFINE_list("mean", None, "Three numbers, as 123.675,116.28,103.53.")
_STD = flags.DEFINE_list("std", None, "Three numbers, as 58.395,57.12,57.375.")
_BGR = flags.DEFINE_bool("bgr", False, "The file's network reads images with blue first.")
_SEED = flags.DEFINE_integer(
    "seed", 0, "Seeds what starts anew.", lower_bound=0, upper_bound=2**31 - 1
)


def main(argv: list[str]) -> None:
    """Writes the checkpoint and says what is in it."""
    del argv
    serialization.check_output(_OUTPUT.value)
    given = _given_names(_CLASS_NAMES.value, _NUM_CLASSES.value)
    preprocessing = {flag.name: _three(flag) for flag in (_MEAN, _STD) if flag.value is not None}
    weights, meta = interop.read_weights(_SOURCE.value)
    try:
        class_names, palette = _classes(meta, _NUM_CLASSES.value, given)
        count = len(class_names)
        origin = interop.origin(weights)
        if _BGR.value and origin in interop.BLUE_FIRST:
            raise UserError(f"--bgr: weights of {origin} are always turned to red first")
        turned = ", blue first there" if _BGR.value or origin in interop.BLUE_FIRST else ""
        info = serialization.NetworkInfo(
            name=_MODEL.value,
            num_classes=count,
            width=64,
            auxiliary=interop.has_auxiliary_head(weights),
            class_names=class_names,
            palette=palette,
            preprocessing=interop.preprocessing(origin)._replace(**preprocessing),
            source=f"{origin}, {os.path.basename(os.path.normpath(_SOURCE.value))}{turned}",
        )

        def make(name: str = info.name) -> Segmenter:
            return create(
                name,
                num_classes=count,
                auxiliary=info.auxiliary,
                rngs=traced_rngs(_SEED.value),
            )

        # Only what keeps some of its initial values needs them; they take as much as the file.
        keeps = _NEW_CLASSIFIER.value or origin in interop.CLASSIFIERS
        net = make() if keeps else nnx.eval_shape(make)
        _load(net, weights, origin, info.name, make)
        del weights
        if _BGR.value:
            interop.red_first(net)
    except UserError as error:
        raise UserError(f"{_SOURCE.value}: {error}") from error
    _, variables = NNXNetwork.of(net)
    info = serialization.save(_OUTPUT.value, info, variables)
    print(f"{info.name} with {count} classes is in {_OUTPUT.value} (weights {info.fingerprint})")


# The SegFormers of each origin, by size.
_SEGFORMERS = {
    interop.MMSEG: "segformer_{}",
    interop.HUGGINGFACE: "segformer_linear_{}",
    interop.NVLABS: "segformer_{}@nvlabs",
    interop.CIRKD: "segformer_{}@cirkd",
}


def _load(
    net: Segmenter,
    weights: Mapping[str, Any],
    origin: str,
    name: str,
    make: Callable[[str], Segmenter],
) -> None:
    """Sets a network to weights.

    Args:
      net: the network.
      weights: arrays by name.
      origin: of the weights.
      name: of the network.
      make: makes a network by its name.

    Raises:
      UserError: when they are not this network's; it names the SegFormer whose weights they are.
    """
    new_classifier = _NEW_CLASSIFIER.value
    try:
        interop.load_weights(net, weights, new_classifier=new_classifier)
    except UserError as error:
        size = re.fullmatch(r"segformer_(?:linear_)?(b\d)(?:@\w+)?", name)
        other = _SEGFORMERS[origin].format(size[1]) if size and origin in _SEGFORMERS else name
        if other == name or other not in NETWORKS:
            raise
        try:
            net = nnx.eval_shape(lambda: make(other))
            interop.load_weights(net, weights, new_classifier=new_classifier)
        except UserError:
            raise error from None
        raise UserError(
            f"these are the weights of {other}, not of {name}: give --model {other}"
        ) from error


def _given_names(given: list[str] | None, count: int | None) -> list[str] | None:
    """Returns the names of `--class_names`.

    Raises:
      UserError: when a name is empty or repeated, or they are not as many as `--num_classes`.
    """
    if given is None:
        return None
    shown = ",".join(given)
    if len(given) == 1 and os.path.isfile(given[0]):
        try:
            with open(given[0], encoding="utf-8-sig") as file:
                given = file.read().splitlines()
        except (OSError, ValueError) as error:
            raise UserError(f"--class_names {shown} cannot be read: {error}") from error
    names = [name.strip() for name in given]
    if not all(names) or len(set(names)) < len(names):
        raise UserError(f"--class_names {shown}: a name is empty or occurs twice")
    if count not in (None, len(names)):
        raise UserError(f"--class_names {shown}: {len(names)} names, but --num_classes is {count}")
    return names


def _three(flag: flags.FlagHolder[list[str] | None]) -> tuple[float, float, float]:
    """The numbers of `--mean`, which are those of pixels, or of `--std`, which divides them."""
    given = flag.value or []
    try:
        red, green, blue = map(float, given)
        numbers = np.array([red, green, blue], np.float32)
    except ValueError as error:
        raise UserError(
            f"--{flag.name} is {','.join(given)!r}; it takes three numbers, red first"
        ) from error
    if flag.name == "mean" and not (numbers.min() >= 0 and numbers.max() <= 255):
        raise UserError(f"--mean is {','.join(given)!r}; it takes means of pixels, 0 to 255")
    if flag.name == "std" and not (numbers.min() > 0 and numbers.max() < math.inf):
        raise UserError(
            f"--std is {','.join(given)!r}; it takes positive numbers, since images are divided by "
            "them"
        )
    return red, green, blue


def _classes(
    meta: Mapping[str, Any], count: int | None, given: Sequence[str] | None = None
) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """Returns names and colors of the classes.

    A checkpoint may say anything there; what is no name and no color is not taken for one.

    Args:
      meta: what the checkpoint says.
      count: the number of classes; None for as many as are named.
      given: names that are taken in place of the checkpoint's.

    Raises:
      UserError: when neither their number nor their names are known.
    """
    names, colors = given, None
    described = meta.get("dataset_meta", meta)
    if names is None and isinstance(described, Mapping):
        found = described.get("classes") or described.get("CLASSES")
        palette = described.get("palette") or described.get("PALETTE")
        if _are_names(found, count) and (palette is None or _are_colors(palette, len(found))):
            names, colors = found, palette
    if names is None and count is None:
        raise UserError("the source does not name its classes: give --num_classes or --class_names")
    names = names or numbered_names(count or 0)
    colors = colors or distinct_colors(len(names)).tolist()
    return tuple(names), tuple(tuple(map(int, color)) for color in colors)


def _are_names(found: Any, count: int | None) -> TypeGuard[Sequence[str]]:
    """Returns True if a checkpoint's value is a name for each class, of which there may be any."""
    if not isinstance(found, (list, tuple)) or len(found) != (count or max(1, len(found))):
        return False
    return all(isinstance(name, str) for name in found)


def _are_colors(found: Any, count: int) -> TypeGuard[Sequence[Sequence[int]]]:
    """Whether a checkpoint's value is a colour for each class."""
    if not isinstance(found, (list, tuple)) or len(found) != count:
        return False
    return all(
        isinstance(color, (list, tuple))
        and len(color) == 3
        and all(isinstance(part, int) and 0 <= part <= 255 for part in color)
        for color in found
    )
