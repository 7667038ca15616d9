"""Converts the weights of a PyTorch network to a network checkpoint.

python -m kdjax.convert --source FILE --model pspnet_r101 --num_classes 19 --output DIR

FILE is a `.pth` or a `.safetensors` file of mmsegmentation, torchvision (`deeplabv3_resnet101`),
HuggingFace's SegFormer or its authors' (`segformer_linear_b0`, `segformer_b0@nvlabs`), CIRKD or
TorchDistiller (`deeplabv3_r18@cirkd`); or a classifier of images, which becomes the backbone under
fresh heads (`pspnet_r18b`). `config.teacher.checkpoint`, `config.student.checkpoint` and, for the
backbone alone, `config.student.backbone` take the result.

Images are normalised as that project does it, with red first. A file that was trained otherwise
needs --mean and --std, in units of 8-bit pixels, or --bgr.
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
from absl import flags
from flax import nnx

from kdjax import interop
from kdjax.classes import distinct_colors, numbered_names
from kdjax.cli import command
from kdjax.errors import UserError
from kdjax.models import NNXNetwork, Segmenter, create, saved
from kdjax.models.network import traced_rngs

_SOURCE = flags.DEFINE_string("source", None, "The checkpoint file.", required=True)
_MODEL = flags.DEFINE_string("model", None, "The network, as pspnet_r101.", required=True)
_NUM_CLASSES = flags.DEFINE_integer(
    "num_classes",
    None,
    "How many classes the network scores.",
    required=True,
    lower_bound=1,
    upper_bound=2**16,
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
    saved.check_output(_OUTPUT.value)
    preprocessing = {flag.name: _three(flag) for flag in (_MEAN, _STD) if flag.value is not None}
    weights, meta = interop.read_weights(_SOURCE.value)
    count = _NUM_CLASSES.value
    class_names, palette = _classes(meta, count)
    try:
        origin = interop.origin(weights)
        if _BGR.value and origin in interop.BLUE_FIRST:
            raise UserError(f"--bgr: weights of {origin} are always turned to red first")
        turned = ", blue first there" if _BGR.value or origin in interop.BLUE_FIRST else ""
        info = saved.NetworkInfo(
            name=_MODEL.value,
            num_classes=count,
            width=64,
            auxiliary=interop.has_auxiliary_head(weights),
            class_names=class_names,
            palette=palette,
            preprocessing=interop.preprocessing(origin)._replace(**preprocessing),
            source=f"{origin}, {os.path.basename(_SOURCE.value)}{turned}",
        )

        def make() -> Segmenter:
            return create(
                info.name,
                num_classes=count,
                auxiliary=info.auxiliary,
                rngs=traced_rngs(_SEED.value),
            )

        # Only what keeps some of its initial values needs them; they take as much as the file.
        keeps = _NEW_CLASSIFIER.value or origin in interop.CLASSIFIERS
        net = make() if keeps else nnx.eval_shape(make)
        interop.load_weights(net, weights, new_classifier=_NEW_CLASSIFIER.value)
        del weights
        if _BGR.value:
            interop.red_first(net)
    except UserError as error:
        raise UserError(f"{_SOURCE.value}: {error}") from error
    _, variables = NNXNetwork.of(net)
    info = saved.save(_OUTPUT.value, info, variables)
    print(f"{info.name} with {count} classes is in {_OUTPUT.value} (weights {info.fingerprint})")


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
    meta: Mapping[str, Any], count: int
) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """Names and colours of the classes: the checkpoint's own where it has as many, else numbers.

    A checkpoint may say anything there; what is no name and no colour is not taken for one.
    """
    described = meta.get("dataset_meta", meta)
    if isinstance(described, Mapping):
        names = described.get("classes") or described.get("CLASSES")
        colors = described.get("palette") or described.get("PALETTE")
        if _are_names(names, count) and _are_colors(colors, count):
            return tuple(names), tuple(tuple(map(int, color)) for color in colors)
    numbered = numbered_names(count)
    return numbered, tuple(tuple(color) for color in distinct_colors(count).tolist())


def _are_names(found: Any, count: int) -> TypeGuard[Sequence[str]]:
    """Whether a checkpoint's value is a name for each class."""
    if not isinstance(found, (list, tuple)) or len(found) != count:
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


if __name__ == "__main__":
    command.run(main)
