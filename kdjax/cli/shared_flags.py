"""The flags that several commands share."""

from typing import Any

from absl import flags

from kdjax.errors import UserError
from kdjax.evaluation.inference import MODES, SLIDE_PAD_TO

_MODE = flags.DEFINE_enum("mode", "whole", MODES, "Whole images, or sliding windows that overlap.")
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


def options() -> dict[str, Any]:
    """The flags as arguments of `kdjax.evaluate` and `kdjax.predict`.

    Raises:
      UserError: for what is no number.
    """
    try:
        scales = tuple(float(scale) for scale in _SCALES.value)
    except ValueError:
        given = ",".join(_SCALES.value)
        raise UserError(f"--scales is {given!r}; give numbers, as 0.5,1.0") from None
    return {
        "mode": _MODE.value,
        "window": _pair(_WINDOW),
        "stride": _pair(_STRIDE),
        "scales": scales,
        "flip": _FLIP.value,
        "pad_to": _PAD_TO.value,
    }


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
