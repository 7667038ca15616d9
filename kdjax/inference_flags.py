"""The flags that say what a network is shown of an image, for `evaluate` and `predict`."""

from collections.abc import Sequence

from absl import flags

from kdjax.errors import UserError
from kdjax.evaluation.inference import Inference

# Padding changes nothing for sliding windows, so that they need not be compiled for every size.
SLIDE_PAD_TO = 64

_MODE = flags.DEFINE_enum(
    "mode", "whole", ["whole", "slide"], "Whole images, or sliding windows that overlap."
)
_WINDOW = flags.DEFINE_string(
    "window", None, "Of sliding windows, as 512,1024 (height, width); the run's crop by default."
)
_STRIDE = flags.DEFINE_string(
    "stride", None, "From one window to the next, as 341,683; two thirds of them by default."
)
_SCALES = flags.DEFINE_list(
    "scales",
    ["1.0"],
    "Sizes at which each image is seen, as 0.5,1.0,1.5; probabilities are averaged.",
)
_FLIP = flags.DEFINE_bool("flip", False, "See the mirror image at each scale, too.")
_PAD_TO = flags.DEFINE_integer(
    "pad_to",
    None,
    "Pads images to multiples of this, so that fewer shapes are compiled. Exact with sliding "
    f"windows, where the default is {SLIDE_PAD_TO}; whole images are not padded unless asked for.",
    lower_bound=1,
    upper_bound=8192,
)


def from_flags(crop_size: Sequence[int] | None) -> Inference:
    """What the flags ask for.

    Args:
      crop_size: of the run that trained the network, where that is known.

    Raises:
      UserError: for values that make no sense.
    """
    try:
        scales = tuple(float(scale) for scale in _SCALES.value)
    except ValueError:
        given = ",".join(_SCALES.value)
        raise UserError(f"--scales is {given!r}; give numbers, as 0.5,1.0") from None
    if _MODE.value == "whole":
        for flag in (_WINDOW, _STRIDE):
            if flag.value is not None:
                raise UserError(f"--{flag.name} is for sliding windows; add --mode slide")
        return Inference(scales=scales, flip=_FLIP.value)
    window = _pair(_WINDOW) or (crop_size and tuple(crop_size))
    if not window:
        raise UserError("--window is missing: this network's crop is not known; give height,width")
    stride = _pair(_STRIDE) or tuple(max(2 * side // 3, 1) for side in window)
    height, width = window
    rows, columns = stride
    return Inference((height, width), (rows, columns), scales, _FLIP.value)


def pad_to(default: int) -> int:
    """What images are padded to a multiple of; `default` is for whole images."""
    if _PAD_TO.value is not None:
        return _PAD_TO.value
    return default if _MODE.value == "whole" else SLIDE_PAD_TO


def _pair(flag: flags.FlagHolder[str | None]) -> tuple[int, int] | None:
    if flag.value is None:
        return None
    try:
        height, width = map(int, flag.value.split(","))
    except ValueError:
        raise UserError(
            f"--{flag.name} is {flag.value!r}; give height and width, as 512,1024"
        ) from None
    return height, width
