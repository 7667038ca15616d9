"""Class names, colors, and ids."""

import colorsys
import csv
import itertools
import math
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Int, Integer, UInt8

# The label of pixels that losses and metrics ignore. Classes are 0..K-1, and K is at most this.
IGNORE_LABEL = 255
# The only class of a set of images without labels.
UNLABELLED = "unlabelled"


def distinct_colors(count: int) -> UInt8[np.ndarray, "K 3"]:
    """Returns `count` distinct RGB colors, the same on every call.

    Hues advance by the golden ratio, so that neighboring ids differ. Brightness and saturation
    alternate, so that ids with similar hues differ too.
    """
    colors = [
        colorsys.hsv_to_rgb(
            0.58 + i * 0.6180339887, (0.75, 0.5, 0.95)[i % 3], (0.9, 0.98, 0.65)[i // 3 % 3]
        )
        for i in range(count)
    ]
    return np.round(np.asarray(colors).reshape(count, 3) * 255).astype(np.uint8)


def hexadecimal(color: Iterable[int]) -> str:
    """Returns an RGB color as `#804080`."""
    return f"#{bytes(color).hex()}"


def numbered_names(count: int) -> tuple[str, ...]:
    """Returns names for classes that have none."""
    return tuple(f"class {index}" for index in range(count))


def of_one_class(iou: Iterable[float]) -> str:
    """Returns a remark for a mean IoU that is the IoU of one class alone, or "" for other means.

    Args:
      iou: the IoU of all K classes; NaN for a class in neither labels nor predictions.
    """
    occurs = [not math.isnan(value) for value in iou]
    return f" (only 1 of {len(occurs)} classes occurs)" if sum(occurs) == 1 < len(occurs) else ""


def object_iou(class_names: Sequence[str], iou: Iterable[float]) -> dict[str, float]:
    """Returns the IoU of the object by its name, or an empty dict unless there are two classes.

    The mean over a large background and an object hides errors of the object.

    Args:
      class_names: the names by id. Of two classes, the first is the background.
      iou: the IoU of all classes; NaN for a class in neither labels nor predictions.
    """
    if len(class_names) != 2:
        return {}
    _, value = iou
    return {class_names[1]: float(value)}


def iou_of_object(class_names: Sequence[str], iou: Iterable[float]) -> str:
    """Returns what `object_iou` returns as the end of a line of text, or ""."""
    found = object_iou(class_names, iou)
    return "".join(f", IoU of {name} {100 * value:.2f} %" for name, value in found.items())


class LabelTable:
    """Maps label values to class ids.

    Args:
      ids: the class id of each known value.
    """

    def __init__(self, ids: Mapping[int, int]):
        # The first and the last entry stand for all values beyond.
        self._low = min(ids) - 1
        self._ids = np.full(max(ids) + 2 - self._low, -1, np.int16)
        for value, number in ids.items():
            self._ids[value - self._low] = number
        self._of_bytes = self._look_up(np.arange(256))

    def __call__(self, values: Integer[np.ndarray, "H W"]) -> Int[np.ndarray, "H W"]:
        """Returns class ids, int16, and -1 for unknown values."""
        return self._of_bytes[values] if values.dtype == np.uint8 else self._look_up(values)

    def _look_up(self, values: Integer[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
        # Unsigned numbers above 2^63 - 1 become negative, and are unknown too.
        return self._ids.take(values.astype(np.int64) - self._low, mode="clip")


def differing_class(
    names: Sequence[str], other_names: Sequence[str], *, here: str = "the data"
) -> str | None:
    """Describes the first class whose name differs between two lists, or returns None.

    Args:
      names: class names by id.
      other_names: the class names in the other list.
      here: the first list, for messages.
    """
    for index, (name, other) in enumerate(
        itertools.zip_longest(names, other_names, fillvalue="none")
    ):
        if name != other:
            return f'class {index} is "{other}" there and "{name}" in {here}'
    return None


_NUMBERED = re.compile(r"class[ _]?\d+")


def class_order(names: Sequence[str], wanted: Sequence[str]) -> tuple[int, ...] | None:
    """Returns the order of a data set's classes among the classes of a network.

    Generated names such as "class_0" match any list.

    Args:
      names: the network's class names by id.
      wanted: the data set's class names by id.

    Returns:
      The network's id of each class of the data set; None if the ids are the same.

    Raises:
      ValueError: if the lists are not permutations of each other, with the first difference.
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
    """Returns the rows of a CSV file with a heading. Lines that begin with # are comments.

    The builder of a data set has such a file with the columns label, name, red, green, and blue.
    """
    lines = [
        line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    ]
    return list(csv.DictReader(lines))
