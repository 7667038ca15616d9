"""Class names, colours and numbers, as every room means them."""

import colorsys
import csv
import itertools
import math
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Int, Integer, UInt8

# Of pixels that no loss and no metric counts; classes are 0..K-1, and K is at most this.
IGNORE_LABEL = 255
# The one class of a set of images without labels.
UNLABELLED = "unlabelled"


def distinct_colors(count: int) -> UInt8[np.ndarray, "K 3"]:
    """`count` RGB colours that tell neighbouring ids apart, the same on every call.

    Hues advance by the golden ratio, which never comes back close to a recent one; brightness and
    saturation take turns so that ids with similar hues still differ.
    """
    colors = [
        colorsys.hsv_to_rgb(
            0.58 + i * 0.6180339887, (0.75, 0.5, 0.95)[i % 3], (0.9, 0.98, 0.65)[i // 3 % 3]
        )
        for i in range(count)
    ]
    return np.round(np.asarray(colors).reshape(count, 3) * 255).astype(np.uint8)


def hexadecimal(color: Iterable[int]) -> str:
    """RGB as `#804080`."""
    return f"#{bytes(color).hex()}"


def numbered_names(count: int) -> tuple[str, ...]:
    """Names of classes that have none."""
    return tuple(f"class {index}" for index in range(count))


def of_one_class(iou: Iterable[float]) -> str:
    """Returns a remark for a mean IoU that is the IoU of one class alone, or "" for other means.

    Args:
      iou: of all K classes; NaN for one that neither labels nor predictions hold.
    """
    occurs = [not math.isnan(value) for value in iou]
    return f" (only 1 of {len(occurs)} classes occurs)" if sum(occurs) == 1 < len(occurs) else ""


class LabelTable:
    """Class ids of the values of labels, by looking them up.

    Args:
      ids: class id of each known value.
    """

    def __init__(self, ids: Mapping[int, int]):
        # With an entry at each end for everything beyond.
        self._low = min(ids) - 1
        self._ids = np.full(max(ids) + 2 - self._low, -1, np.int16)
        for value, number in ids.items():
            self._ids[value - self._low] = number
        self._of_bytes = self._look_up(np.arange(256))

    def __call__(self, values: Integer[np.ndarray, "H W"]) -> Int[np.ndarray, "H W"]:
        """Class ids, int16, and -1 where a value is not known."""
        return self._of_bytes[values] if values.dtype == np.uint8 else self._look_up(values)

    def _look_up(self, values: Integer[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
        # Unsigned numbers beyond 2^63 - 1 become negative, and those are no class either.
        return self._ids.take(values.astype(np.int64) - self._low, mode="clip")


def differing_class(
    names: Sequence[str], other_names: Sequence[str], *, here: str = "the data"
) -> str | None:
    """Says which class is the first whose name differs in another list; None where none does.

    Args:
      names: of the classes, by id.
      other_names: likewise, in the other list.
      here: what the message calls the first list.
    """
    for index, (name, other) in enumerate(
        itertools.zip_longest(names, other_names, fillvalue="none")
    ):
        if name != other:
            return f'class {index} is "{other}" there and "{name}" in {here}'
    return None


_NUMBERED = re.compile(r"class[ _]?\d+")


def class_order(names: Sequence[str], wanted: Sequence[str]) -> tuple[int, ...] | None:
    """Returns where the classes of a data set stand among the classes of a network.

    Names such as "class_0" count as no names: lists of these fit any list.

    Args:
      names: of the network's classes, by id.
      wanted: of the data set's classes, by id.

    Returns:
      The network's id of each class of the data set; None if the ids are the same.

    Raises:
      ValueError: if neither list is a permutation of the other; it says what differs first.
    """
    if any(all(map(_NUMBERED.fullmatch, listed)) for listed in (names, wanted)):
        return None
    difference = differing_class(wanted, names)
    if difference is None:
        return None
    if sorted(names) != sorted(wanted) or len(set(names)) < len(names):
        raise ValueError(difference)
    return tuple(names.index(name) for name in wanted)


def read_table(path: pathlib.Path) -> list[dict[str, str]]:
    """Rows of comma-separated values with a heading, by column; lines that begin with # are none.

    Such a file, with the columns label, name, red, green and blue, is beside a data set's builder.
    """
    lines = [
        line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    ]
    return list(csv.DictReader(lines))
