"""Which whole images share a batch in evaluation: the same plan on every process, in NumPy."""

import dataclasses
from collections.abc import Iterable, Sequence

from kdjax.data.share import rows_of_process


@dataclasses.dataclass(frozen=True)
class EvalBatch:
    """A batch of whole images.

    Attributes:
        size: height and width that its images are padded to, in pixels.
        indices: the images in its rows, `[B]`; -1 where a blank one only fills up.
    """

    size: tuple[int, int]
    indices: tuple[int, ...]


def plan(
    images: Iterable[tuple[int, tuple[int, int]]],
    batch_size: int,
    *,
    pad_to: int = 1,
    exact_below: tuple[int, int] = (0, 0),
    process_index: int = 0,
    process_count: int = 1,
) -> list[EvalBatch]:
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
            batches.append(EvalBatch(size, tuple(chunk[rows.start : rows.stop])))
    return batches


def count_shapes(sizes: Iterable[tuple[int, int]], pad_to: int) -> int:
    """How many sizes are left of these when they are padded as `plan` does."""
    return len({_padded(size, pad_to) for size in sizes})


def _padded(
    size: tuple[int, int], pad_to: int, exact_below: tuple[int, int] = (0, 0)
) -> tuple[int, int]:
    height, width = (
        side if side < least else -(-side // pad_to) * pad_to
        for side, least in zip(size, exact_below, strict=True)
    )
    return height, width
