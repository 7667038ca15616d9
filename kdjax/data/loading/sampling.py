"""The order of examples in a run, and the random numbers of their augmentation, in NumPy.

Both depend on the seed and the position alone. `augment` (tf.data) and `device_augment` (JAX) turn
the numbers into pixels.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from kdjax.data.options import CropOptions
from kdjax.utils.bands import RGB, Bands
from kdjax.utils.errors import UserError

# Crops that are tried for one that no class fills, before the next one is taken as it is.
CROP_TRIES = 10
# A place between two pixels is rounded to 1/2048, as in OpenCV. The sum of four 8-bit pixels with
# weights of 11 bits in each direction fits 32 bits, so that TensorFlow and JAX agree.
WEIGHT_BITS = 11


@dataclasses.dataclass(frozen=True)
class AugmentOptions(CropOptions):
    """The augmentations of an example, and additional results.

    Attributes:
      clean_view: also return the crop before its colors are distorted.
      place: also return which example was cropped, and where.
      bands: the bands of the images. Colors are distorted only in photos.
    """

    clean_view: bool = False
    place: bool = False
    bands: Bands = RGB

    @property
    def distorts(self) -> bool:
        """True if colors are distorted."""
        return self.photometric and self.bands == RGB


class Draws(NamedTuple):
    """The random numbers of examples, with a leading axis `[B]`, or of one example without it.

    A factor of 1 and an amount of 0 mean no change.

    Attributes:
      scale: float32, the factor by which height and width, or the base size, are scaled.
      corners: float32 `[..., 11, 2]` in 0..1, relative corners of the crop in the order in which
        they are tried.
      mirrored: bool.
      brightness: float32, added to every channel, in -32..32 of 255.
      contrast: float32, factor of every channel, in 0.5..1.5.
      contrast_first: bool, whether contrast comes before saturation and hue or after.
      saturation: float32, factor in 0.5..1.5.
      hue: float32, in turns of the circle, in -0.1..0.1 (18 of OpenCV's 180 steps).
      wanted: int32, the class that the crop must contain, or -1 for any crop.
      anchor: float32 in 0..1, relative place among the pixels of that class of the pixel around
        which the crop is drawn.
    """

    scale: Any
    corners: Any
    mirrored: Any
    brightness: Any
    contrast: Any
    contrast_first: Any
    saturation: Any
    hue: Any
    wanted: Any
    anchor: Any


def draw(options: AugmentOptions, seed: int, positions: Sequence[int] | np.ndarray) -> Draws:
    """Returns the random numbers of the examples at `positions` of a run, with an axis `[B]`.

    Args:
      options: the augmentations.
      seed: a non-negative number.
      positions: places in the endless sequence of examples, `[B]`.
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
        wanted=np.full(len(rows), -1, np.int32),
        anchor=np.zeros(len(rows), np.float32),
    )


def _uniform(seed: int, position: int) -> np.ndarray:
    generator = np.random.Generator(np.random.Philox(key=[seed, position]))
    return generator.random(2 + 9 + 2 * (CROP_TRIES + 1))


@dataclasses.dataclass(frozen=True)
class ClassSampling:
    """Draws a share of the examples by class instead of by their order.

    Attributes:
      share: the share, 0 to 1.
      examples: for each class that occurs, its number and the indices of the examples with it.

    Source:
      Zhu et al., "Improving semantic segmentation via video propagation and label relaxation" (CVPR
      2019), class uniform sampling.
    """

    share: float
    examples: tuple[tuple[int, Int64[np.ndarray, "n"]], ...]

    def __call__(
        self,
        indices: Int64[np.ndarray, "B"],
        draws: Draws,
        seed: int,
        positions: Int64[np.ndarray, "B"],
    ) -> tuple[Int64[np.ndarray, "B"], Draws]:
        """Replaces a share of the examples at `positions`, and names the class that each is for."""
        indices, wanted, anchor = indices.copy(), draws.wanted.copy(), draws.anchor.copy()
        for row, position in enumerate(positions):
            # The counter separates these numbers from those of `draw`.
            philox = np.random.Philox(key=[seed, int(position)], counter=[0, 0, 0, 1])
            chance, which, member, place = np.random.Generator(philox).random(4)
            if chance < self.share:
                wanted[row], members = self.examples[int(which * len(self.examples))]
                indices[row] = members[int(member * len(members))]
                anchor[row] = place
        return indices, draws._replace(wanted=wanted, anchor=anchor)


def examples_at(
    positions: Int64[np.ndarray, "B"],
    seed: int,
    lengths: Sequence[int],
    weights: Sequence[int],
    options: AugmentOptions,
    by_class: ClassSampling | None = None,
) -> tuple[Int64[np.ndarray, "B"], Draws]:
    """Returns the examples at `positions` of a run, and their random numbers."""
    indices = example_indices(positions, seed, lengths, weights)
    draws = draw(options, seed, positions)
    return by_class(indices, draws, seed, positions) if by_class else (indices, draws)


def rows_of_process(batch_size: int, process_index: int, process_count: int) -> range:
    """Returns the rows of a batch that process `process_index` of `process_count` reads.

    Raises:
      UserError: if the processes cannot share the batch evenly.
    """
    size, rest = divmod(batch_size, process_count)
    if rest:
        raise UserError(f"a batch of {batch_size} cannot be shared by {process_count} processes")
    return range(process_index * size, (process_index + 1) * size)


def example_indices(
    positions: Int64[np.ndarray, "B"],
    seed: int,
    lengths: Sequence[int],
    weights: Sequence[int] = (1,),
) -> Int64[np.ndarray, "B"]:
    """Returns the examples at `positions` of a run. Indices count through all sets.

    The sequence consists of periods of `sum(weights)` positions. In each, set k has exactly
    `weights[k]` positions, in a shuffled order. Each set has its own epochs: every example comes
    once before any comes again, in a new order each time.

    Args:
      positions: non-negative numbers.
      seed: a non-negative number.
      lengths: the number of examples of each set.
      weights: a positive number for each set.
    """
    offsets = np.cumsum([0, *lengths])
    periods, places = np.divmod(positions, sum(weights))
    indices = []
    for period, place in zip(periods.tolist(), places.tolist(), strict=True):
        members, ranks = _period(tuple(weights), seed, period)
        member = members[place]
        epoch, rank = divmod(period * weights[member] + ranks[place], lengths[member])
        indices.append(offsets[member] + _epoch(lengths[member], seed, epoch, member)[rank])
    return np.array(indices, np.int64)


@functools.lru_cache(maxsize=64)
def _period(weights: tuple[int, ...], seed: int, period: int) -> tuple[list[int], list[int]]:
    """Returns for each place of a period the set, and the number of its examples before."""
    members = np.repeat(np.arange(len(weights)), weights)
    members = np.random.default_rng([seed, period, len(weights)]).permutation(members)
    counts = [np.cumsum(members == member) for member in range(len(weights))]
    ranks = [int(counts[member][place]) - 1 for place, member in enumerate(members)]
    return members.tolist(), ranks


@functools.lru_cache(maxsize=16)
def _epoch(length: int, seed: int, epoch: int, member: int) -> Int64[np.ndarray, "N"]:
    return np.random.default_rng([seed, epoch, member]).permutation(length)


@dataclasses.dataclass(frozen=True)
class BatchIndices:
    """The whole images of a batch.

    Attributes:
      size: the height and width to which its images are padded, in pixels.
      indices: the images in its rows, `[B]`; -1 for a blank image.
    """

    size: tuple[int, int]
    indices: tuple[int, ...]


def batch_by_size(
    images: Iterable[tuple[int, tuple[int, int]]],
    batch_size: int,
    *,
    pad_to: int = 1,
    exact_below: tuple[int, int] = (0, 0),
    process_index: int = 0,
    process_count: int = 1,
) -> list[BatchIndices]:
    """Puts each image once into a batch of its padded size, and fills up each size's last batch.

    Every process gets the same number of batches, of the same sizes in the same order.

    Args:
      images: the index, and height and width, of every image of all processes.
      batch_size: images in a batch of all processes together, B.
      pad_to: pad height and width to a multiple of this; 1 pads nothing.
      exact_below: do not pad a height and a width below these.
      process_index: the index of this process.
      process_count: the number of processes.

    Raises:
      UserError: if the processes cannot share a batch evenly.
    """
    rows = rows_of_process(batch_size, process_index, process_count)
    groups: dict[tuple[int, int], list[int]] = {}
    for index, size in images:
        groups.setdefault(padded(size, pad_to, exact_below), []).append(index)
    batches = []
    for size, members in groups.items():
        for start in range(0, len(members), batch_size):
            chunk: Sequence[int] = members[start : start + batch_size]
            chunk = [*chunk, *[-1] * (batch_size - len(chunk))]
            batches.append(BatchIndices(size, tuple(chunk[rows.start : rows.stop])))
    return batches


def padded(
    size: tuple[int, int], pad_to: int, exact_below: tuple[int, int] = (0, 0)
) -> tuple[int, int]:
    """Returns the size to which `batch_by_size` pads an image."""
    height, width = (
        side if side < least else -(-side // pad_to) * pad_to
        for side, least in zip(size, exact_below, strict=True)
    )
    return height, width


def index_batches(  # noqa: PLR0913
    lengths: Sequence[int],
    weights: Sequence[int],
    *,
    batch_size: int,
    seed: int,
    steps: range,
    options: AugmentOptions,
    by_class: ClassSampling | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, Any]]:
    """Yields the input of `kdjax.data.loading.device_augment.augment_batch` for each step.

    Args:
      lengths: the number of examples of each set.
      weights: how many of the examples in a row come from each set.
      batch_size: examples in a batch of all processes together, B.
      seed: a non-negative number that determines the order of examples and the augmentation.
      steps: the steps, counted from 0.
      options: the augmentations.
      by_class: draws a share of the examples by class.
      process_index: the index of this process.
      process_count: the number n of processes that share a batch.

    Yields:
      `indices`, int32 `[B / n]`, and `draws`, with an axis `[B / n]`.

    Raises:
      UserError: if the processes cannot share a batch evenly.
    """
    rows = np.array(rows_of_process(batch_size, process_index, process_count))
    for step in steps:
        positions = step * batch_size + rows
        indices, draws = examples_at(positions, seed, lengths, weights, options, by_class)
        yield {"indices": indices.astype(np.int32), "draws": draws}
