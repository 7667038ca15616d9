"""Converts the weights of a PyTorch network to a network checkpoint.

python -m kdjax convert --source FILE --model pspnet_r101 --num_classes 19 --output DIR

FILE is a `.pth` or a `.safetensors` file of mmsegmentation, torchvision (`deeplabv3_resnet101`),
HuggingFace's SegFormer or its authors' (`segformer_linear_b0`, `segformer_b0@nvlabs`), CIRKD or
TorchDistiller (`deeplabv3_r18@cirkd`); or an image classifier or DINO, whose backbone gets fresh
heads (`pspnet_r18b`), or none (`r18b`, `dinov2_s`; without --num_classes). FILE may be a directory
that HuggingFace's `save_pretrained` wrote. Use the result as `config.teacher.checkpoint`,
`config.student.checkpoint`, or `config.student.backbone`. If the network was not trained with its
project's normalization, give --mean and --std, or --bgr.
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
from kdjax.interop import origins
from kdjax.models import NETWORKS, NNXNetwork, Segmenter, create, serialization
from kdjax.models.adapters import traced_rngs
from kdjax.models.architectures import EXTRACTORS
from kdjax.utils.classes import distinct_colors, numbered_names
from kdjax.utils.errors import UserError

_SOURCE = flags.DEFINE_string(
    "source", None, "The checkpoint file, or a directory of save_pretrained.", required=True
)
_MODEL = flags.DEFINE_string("model", None, "The network, for example pspnet_r101.", required=True)
_NUM_CLASSES = flags.DEFINE_integer(
    "num_classes",
    None,
    "Number of classes; by default as many as the source names.",
    lower_bound=1,
    upper_bound=2**16,
)
_CLASS_NAMES = flags.DEFINE_list(
    "class_names", None, "Class names in order (road,sky), or a file with one name per line."
)
_OUTPUT = flags.DEFINE_string("output", None, "Directory of the checkpoint.", required=True)
_NEW_CLASSIFIER = flags.DEFINE_bool(
    "new_classifier", False, "Initialize the classifiers if their number of classes differs."
)
_MEAN = flags.DEFINE_list("mean", None, "Three numbers, for example 123.675,116.28,103.53.")
_STD = flags.DEFINE_list("std", None, "Three numbers, for example 58.395,57.12,57.375.")
_BGR = flags.DEFINE_bool("bgr", False, "The file's network reads images with blue first.")
_SEED = flags.DEFINE_integer(
    "seed", 0, "Seed of the initial values.", lower_bound=0, upper_bound=2**31 - 1
)


def main(argv: list[str]) -> None:
    """Writes the checkpoint and prints what it holds."""
    del argv
    serialization.check_output(_OUTPUT.value)
    given = _given_names(_CLASS_NAMES.value, _NUM_CLASSES.value)
    preprocessing = {flag.name: _three(flag) for flag in (_MEAN, _STD) if flag.value is not None}
    weights, meta = interop.read_weights(_SOURCE.value)
    try:
        class_names, palette = (), ()
        if _MODEL.value not in EXTRACTORS:
            class_names, palette = _classes(meta, _NUM_CLASSES.value, given)
        elif _NUM_CLASSES.value or given:
            raise UserError(f"{_MODEL.value} scores no classes: leave out their number and names")
        count = len(class_names)
        origin = interop.origin(weights)
        if _BGR.value and origin in origins.BLUE_FIRST:
            raise UserError(f"--bgr: weights of {origin} are always converted to red first")
        reversed_ = ", blue first there" if _BGR.value or origin in origins.BLUE_FIRST else ""
        info = serialization.NetworkInfo(
            name=_MODEL.value,
            num_classes=count,
            width=64,
            auxiliary=bool(count) and interop.has_auxiliary_head(weights),
            class_names=class_names,
            palette=palette,
            preprocessing=interop.preprocessing(origin)._replace(**preprocessing),
            source=f"{origin}, {os.path.basename(os.path.normpath(_SOURCE.value))}{reversed_}",
        )

        def make(name: str) -> Segmenter:
            rngs = traced_rngs(_SEED.value)
            return create(name, num_classes=count, auxiliary=info.auxiliary, rngs=rngs)

        # Initial values take as much memory as the file, and are needed only if some remain.
        if _NEW_CLASSIFIER.value or origin in origins.CLASSIFIERS:
            net = make(info.name)
        else:
            net = nnx.eval_shape(lambda: make(info.name))
        _load(net, weights, info.name, make)
        del weights
        if _BGR.value:
            interop.red_first(net)
    except UserError as error:
        raise UserError(f"{_SOURCE.value}: {error}") from error
    info = serialization.save(_OUTPUT.value, info, NNXNetwork.of(net)[1])
    scored = f"with {count} classes" if count else "without class scores"
    print(f"{info.name} {scored} is in {_OUTPUT.value} (weights {info.fingerprint})")


# The SegFormers of each origin, by size.
_SEGFORMERS = {
    origins.MMSEG: "segformer_{}",
    origins.HUGGINGFACE: "segformer_linear_{}",
    origins.NVLABS: "segformer_{}@nvlabs",
    origins.CIRKD: "segformer_{}@cirkd",
}


def _load(
    net: Segmenter, weights: Mapping[str, Any], name: str, make: Callable[[str], Segmenter]
) -> None:
    """Sets the network `name` to weights.

    Raises:
      UserError: if the weights do not fit. The message names the SegFormer that they fit.
    """
    new_classifier = _NEW_CLASSIFIER.value
    try:
        interop.load_weights(net, weights, new_classifier=new_classifier)
    except UserError as error:
        size = re.fullmatch(r"segformer_(?:linear_)?(b\d)(?:@\w+)?", name)
        other = _SEGFORMERS.get(interop.origin(weights), name).format(size[1]) if size else name
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
      UserError: if a name is empty or repeated, or their number is not `--num_classes`.
    """
    if given is None:
        return None
    shown = ",".join(given)
    if len(given) == 1 and os.path.isfile(given[0]):
        try:
            with open(given[0], encoding="utf-8-sig") as file:
                given = file.read().splitlines()
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read --class_names {shown}: {error}") from error
    names = [name.strip() for name in given]
    if not all(names) or len(set(names)) < len(names):
        raise UserError(f"--class_names {shown}: a name is empty or occurs twice")
    if count not in (None, len(names)):
        raise UserError(f"--class_names {shown}: {len(names)} names, but --num_classes is {count}")
    return names


def _three(flag: flags.FlagHolder[list[str] | None]) -> tuple[float, float, float]:
    """Returns the numbers of `--mean` or `--std`, in units of pixel values."""
    given = flag.value or []
    try:
        red, green, blue = map(float, given)
        numbers = np.array([red, green, blue], np.float32)
    except ValueError as error:
        raise UserError(
            f"--{flag.name} is {','.join(given)!r}; give three numbers, red first"
        ) from error
    if flag.name == "mean" and not (numbers.min() >= 0 and numbers.max() <= 255):
        raise UserError(f"--mean is {','.join(given)!r}; give means of pixels, 0 to 255")
    if flag.name == "std" and not (numbers.min() > 0 and numbers.max() < math.inf):
        raise UserError(f"--std is {','.join(given)!r}; give positive numbers")
    return red, green, blue


def _classes(
    meta: Mapping[str, Any], count: int | None, given: Sequence[str] | None = None
) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """Returns names and colors of the classes.

    Invalid names and colors in a checkpoint are ignored.

    Args:
      meta: the checkpoint's other information.
      count: the number of classes; None for as many as are named.
      given: names that replace the checkpoint's.

    Raises:
      UserError: if neither the number of classes nor their names are known.
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
    """Returns True if a checkpoint's value is a list of `count` names, or of one or more."""
    if not isinstance(found, (list, tuple)) or len(found) != (count or max(1, len(found))):
        return False
    return all(isinstance(name, str) for name in found)


def _are_colors(found: Any, count: int) -> TypeGuard[Sequence[Sequence[int]]]:
    """Returns True if a checkpoint's value is a list of `count` colors."""
    if not isinstance(found, (list, tuple)) or len(found) != count:
        return False
    return all(
        isinstance(color, (list, tuple))
        and len(color) == 3
        and all(isinstance(part, int) and 0 <= part <= 255 for part in color)
        for color in found
    )
