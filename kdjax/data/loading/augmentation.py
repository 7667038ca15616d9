"""What training does to an example, and the random numbers it takes: options and draws, in NumPy.

The numbers of an example are drawn on the host from its seed and position alone. What is done with
them is written twice, for tf.data (`augment`) and for the device (`device_augment`); both are pure
functions of the example and its draws, so they can be held against each other.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kdjax.data.options import CropOptions

# The rounded ImageNet mean: what normalisation on the device turns into (almost) 0.
IMAGE_PADDING = (124, 116, 104)
# How many crops are tried for one that no class fills; the next one is taken as it is.
CROP_TRIES = 10
# A place between two pixels is known to 1/2048, as in OpenCV: the sum of four 8-bit pixels with
# weights of 11 bits in each direction still fits 32 bits, so that all who compute it agree.
WEIGHT_BITS = 11


@dataclasses.dataclass(frozen=True)
class AugmentOptions(CropOptions):
    """What training does to an example, and what is asked of it beside.

    Attributes:
      clean_view: give the crop also as it was before its colours changed.
      place: say also which example was cropped, and where.
    """

    clean_view: bool = False
    place: bool = False


class Draws(NamedTuple):
    """The random numbers of examples, with a leading axis `[B]` or of a single one without.

    All are final: a factor of 1 and an amount of 0 mean that nothing is done.

    Attributes:
      scale: float32, the factor by which height and width, or the base size, are scaled.
      corners: float32 `[..., 11, 2]` in 0..1, places of the crop in the room that there is, in
        the order in which they are tried.
      mirrored: bool.
      brightness: float32, what is added to every channel, in -32..32 of 255.
      contrast: float32, factor of every channel, in 0.5..1.5.
      contrast_first: bool, whether contrast comes before saturation and hue rather than after.
      saturation: float32, factor in 0.5..1.5.
      hue: float32, in turns of the circle, in -0.1..0.1 (18 of OpenCV's 180 steps).
    """

    scale: Any
    corners: Any
    mirrored: Any
    brightness: Any
    contrast: Any
    contrast_first: Any
    saturation: Any
    hue: Any


def draw(options: AugmentOptions, seed: int, positions: Sequence[int] | np.ndarray) -> Draws:
    """The numbers of the examples at `positions` of a run's endless sequence, with an axis `[B]`.

    Args:
      options: what they are for.
      seed: not negative.
      positions: of the examples, `[B]`, not negative.
    """
    rows = np.stack([_uniform(seed, int(position)) for position in positions])
    scale, mirrored, *others = rows.T[: 2 + 9]
    coins, amounts, contrast_first = np.stack(others[:4]) < 0.5, others[4:8], others[8]

    def between(low: float, high: float, number: np.ndarray) -> np.ndarray:
        return (low + (high - low) * number).astype(np.float32)

    def amount(index: int, spread: float, neutral: float) -> np.ndarray:
        value = between(neutral - spread, neutral + spread, amounts[index])
        return np.where(coins[index] & options.photometric, value, np.float32(neutral))

    return Draws(
        scale=between(*options.scale_range, scale),
        corners=rows[:, 2 + 9 :].reshape(len(rows), CROP_TRIES + 1, 2).astype(np.float32),
        mirrored=(mirrored < 0.5) & options.flip,
        brightness=amount(0, 32.0, 0.0),
        contrast=amount(1, 0.5, 1.0),
        contrast_first=contrast_first < 0.5,
        saturation=amount(2, 0.5, 1.0),
        hue=amount(3, 0.1, 0.0),
    )


def _uniform(seed: int, position: int) -> np.ndarray:
    generator = np.random.Generator(np.random.Philox(key=[seed, position]))
    return generator.random(2 + 9 + 2 * (CROP_TRIES + 1))
