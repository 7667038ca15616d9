"""Which examples a process reads when: in training by arithmetic, in evaluation by size."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from kdjax.data.loading.augmentation import AugmentOptions, draw
from kdjax.errors import UserError


def rows_of_process(batch_size: int, process_index: int, process_count: int) -> range:
    """The rows of a batch that process `process_index` of `process_count` reads.

    Raises:
      UserError: the batch cannot be shared evenly.
    """
    if not 0 <= process_index < process_count:
        raise ValueError(f"process {process_index} of {process_count}: count from 0")
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
    """Which examples stand at `positions`, numbered through all sets in turn.

    The sequence is cut into periods of `sum(weights)` positions, in each of which set k has exactly
    `weights[k]`, in a shuffled order. Each set goes through epochs of its own: every one of its
    examples comes once before any comes again, in a new order each time.

    Args:
      positions: not negative.
      seed: not negative.
      lengths: number of examples of each set.
      weights: positive, one for each set.
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
    """By place of a period: which set, and how many of its examples stand before in the period."""
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
    """Which whole images make a batch.

    Attributes:
      size: height and width that its images are padded to, in pixels.
      indices: the images in its rows, `[B]`; -1 where a blank one only fills up.
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

    Every process gets as many batches, of the same sizes in the same order: its rows of each.

    Args:
      images: index, and height and width, of every image of all processes.
      batch_size: images in a batch of all processes together, B.
      pad_to: height and width are padded up to a multiple of this; 1 leaves them.
      exact_below: a height and a width below these are left in any case.
      process_index: which process this is.
      process_count: how many share the batches.

    Raises:
      UserError: the processes cannot share a batch evenly.
    """
    rows = rows_of_process(batch_size, process_index, process_count)
    groups: dict[tuple[int, int], list[int]] = {}
    for index, size in images:
        groups.setdefault(_padded(size, pad_to, exact_below), []).append(index)
    batches = []
    for size, members in groups.items():
        for start in range(0, len(members), batch_size):
            chunk: Sequence[int] = members[start : start + batch_size]
            chunk = [*chunk, *[-1] * (batch_size - len(chunk))]
            batches.append(BatchIndices(size, tuple(chunk[rows.start : rows.stop])))
    return batches


def count_shapes(sizes: Iterable[tuple[int, int]], pad_to: int) -> int:
    """How many sizes are left of these when they are padded as `batch_by_size` does."""
    return len({_padded(size, pad_to) for size in sizes})


def _padded(
    size: tuple[int, int], pad_to: int, exact_below: tuple[int, int] = (0, 0)
) -> tuple[int, int]:
    height, width = (
        side if side < least else -(-side // pad_to) * pad_to
        for side, least in zip(size, exact_below, strict=True)
    )
    return height, width


def index_batches(
    lengths: Sequence[int],
    weights: Sequence[int],
    *,
    batch_size: int,
    seed: int,
    num_steps: int,
    options: AugmentOptions,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, Any]]:
    """What `kdjax.data.loading.device_augment.augment_batch` takes to make the same batches.

    Args:
      lengths: number of examples of each set.
      weights: how many of the examples in a row come from each set.
      batch_size: examples in a batch of all processes together, B.
      seed: not negative; chooses the order of the examples and what augmentation does to them.
      num_steps: the step before which to stop, counted from 0.
      options: the augmentations.
      start_step: the first step.
      process_index: which process this is.
      process_count: n, how many processes share a batch.

    Yields:
      `indices`, int32 `[B / n]`, and `draws`, with an axis `[B / n]`.

    Raises:
      UserError: the processes cannot share a batch evenly.
    """
    rows = np.array(rows_of_process(batch_size, process_index, process_count))
    for step in range(start_step, num_steps):
        positions = step * batch_size + rows
        indices = example_indices(positions, seed, lengths, weights)
        yield {"indices": indices.astype(np.int32), "draws": draw(options, seed, positions)}
