"""Class names, colours and numbers, as every room means them."""

import colorsys
import csv
import itertools
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

# Of pixels that no loss and no metric counts; classes are 0..K-1, and K is at most this.
IGNORE_LABEL = 255


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


def numbered_names(count: int) -> tuple[str, ...]:
    """Names of classes that have none."""
    return tuple(f"class {index}" for index in range(count))


def differing_class(
    ours: Sequence[str], theirs: Sequence[str], *, here: str = "the data"
) -> str | None:
    """Says which class is the first that another list calls otherwise; None where none is.

    Args:
      ours: names of classes.
      theirs: the other list.
      here: what the message calls the former.
    """
    for index, (our, their) in enumerate(itertools.zip_longest(ours, theirs, fillvalue="none")):
        if our != their:
            return f'class {index} is "{their}" there and "{our}" in {here}'
    return None


def read_table(path: pathlib.Path) -> list[dict[str, str]]:
    """Rows of comma-separated values with a heading, by column; lines that begin with # are none.

    Such a file, with the columns label, name, red, green and blue, is beside a data set's builder.
    """
    lines = [
        line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    ]
    return list(csv.DictReader(lines))
