"""The folders of data sets, their class tables, and maps from label values to class ids."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Integer, UInt8

from kdjax.utils import files
from kdjax.utils.classes import IGNORE_LABEL, LabelTable, hexadecimal, read_table
from kdjax.utils.errors import UserError
from kdjax.utils.imports import SEPARATOR, closest_match

SEARCH_PATH = "KDJAX_DATASETS"
_TABLE = "classes.csv"  # in the folder of a data set

Color: TypeAlias = tuple[int, int, int]  # RGB, 0..255


def builder_folders() -> list[pathlib.Path]:
    """Returns the folder `NAME`, with its `NAME.py`, of every data set.

    Searches the folders in the environment variable KDJAX_DATASETS, separated as in PATH, and then
    the data sets of kdjax.
    """
    own, roots = files.shipped_folder("datasets"), []
    for named in filter(None, os.environ.get(SEARCH_PATH, "").split(os.pathsep)):
        root = pathlib.Path(named).expanduser().resolve()
        if not root.is_dir():
            raise UserError(
                f"{SEARCH_PATH} names {root}, which is no folder; it names folders that hold a "
                f"folder NAME with a NAME.py for each data set, separated by {os.pathsep!r}"
            )
        if root != own and root not in roots:
            roots.append(root)
    if not own.is_dir():
        raise UserError(f"no folder of data set builders at {own}; install kdjax again")
    return [
        path.parent
        for root in (*roots, own)
        for path in sorted(root.glob("*/*.py"))
        if path.stem == path.parent.name
    ]


def builder_folder(name: str) -> pathlib.Path:
    """Returns the folder of one data set."""
    folders = builder_folders()
    found = [folder for folder in folders if folder.name == name]
    # Records are stored under the name of their set, so two sets would share records.
    if len(found) > 1:
        raise UserError(
            f"several data sets have the name {name!r}: {' and '.join(map(str, found))}; rename "
            f"your own, or take its folder out of {SEARCH_PATH}"
        )
    if found:
        return found[0]
    near = closest_match(name, [folder.name for folder in folders])
    hint = f'did you mean "{near}"? ' if near else ""
    raise UserError(
        f"unknown data set {name!r}: {hint}there are: {', '.join(path.name for path in folders)}; "
        'a builder of your own may be named "package.module:attribute"'
    )


@dataclasses.dataclass(frozen=True)
class ClassTable:
    """The classes of a data set, in the order of their ids 0..K-1.

    Attributes:
      names: the names of the K classes.
      palette: their RGB colors.
      labels: their values in the original labels.
    """

    names: list[str]
    palette: UInt8[np.ndarray, "K 3"]
    labels: list[int]

    @classmethod
    def read(cls, path: pathlib.Path) -> "ClassTable":
        """Reads columns label, name, red, green, blue. Lines that begin with # are comments."""
        rows = read_table(path)
        return cls(
            names=[row["name"] for row in rows],
            palette=np.array([color_of(row) for row in rows], np.uint8),
            labels=[int(row["label"]) for row in rows],
        )

    def ids(self, *, ignored: Iterable[int] = ()) -> dict[int, int]:
        """Returns the class id of each label value, and 255 for the `ignored` ones."""
        classes = {label: number for number, label in enumerate(self.labels)}
        return {**dict.fromkeys(ignored, IGNORE_LABEL), **classes}


def color_of(row: Mapping[str, str]) -> Color:
    """Returns the RGB color in a row of a table."""
    return int(row["red"]), int(row["green"]), int(row["blue"])


def original_labels(name: str) -> list[int]:
    """Returns the value of each class of a data set in its original labels."""
    known = [path.name for path in builder_folders() if (path / _TABLE).is_file()]
    if name not in known:
        raise UserError(f"{name!r} has no original ids; data sets that do: {', '.join(known)}")
    return ClassTable.read(builder_folder(name) / _TABLE).labels


def known_classes(name: str) -> int:
    """Returns the number of classes that a data set has by default, from its table.

    A row with a value in the column `optional` is a class that only an option of the builder adds.
    """
    table = None if SEPARATOR in name else builder_folder(name) / _TABLE
    if table is None or not table.is_file():
        raise UserError(f"how many classes has data set {name}? No table says: give --num_classes")
    return sum(not row.get("optional") for row in read_table(table))


class LabelMap:
    """Maps the values of original labels to class ids."""

    def __init__(self, ids: Mapping[int, int], known: str):
        """Maps by `ids`. Messages describe its keys by `known`."""
        self._ids = LabelTable(ids)
        self._known = known

    def __call__(
        self, values: Integer[np.ndarray, "H W"], path: pathlib.Path
    ) -> UInt8[np.ndarray, "H W"]:
        """Returns the class ids of `values`, which were read from `path`."""
        ids = self._ids(values)
        if (unknown := ids < 0).any():
            value = values[unknown][0]
            raise UserError(f"{path} holds the value {value}; allowed are {self._known}")
        return ids.astype(np.uint8)


_BASE = np.array([1 << 16, 1 << 8, 1], np.int32)  # turns a color into one number


class ColorMap:
    """Maps the colors of labels to class ids."""

    def __init__(
        self,
        ids: Mapping[Color, int],
        names: Sequence[str],
        known: str,
        *,
        ignore_unknown: bool = False,
    ):
        """Describes the colors.

        Args:
          ids: the class id, or 255, of each known color.
          names: the class names, for messages.
          known: a description of the colors, for messages.
          ignore_unknown: whether unknown colors become 255.
        """
        self._names = {color: names[i] if i < len(names) else "ignored" for color, i in ids.items()}
        self._ids = LabelTable({int(_BASE @ color): number for color, number in ids.items()})
        self._known = known
        self._ignore_unknown = ignore_unknown

    def __call__(
        self, colors: UInt8[np.ndarray, "H W 3"], path: pathlib.Path
    ) -> UInt8[np.ndarray, "H W"]:
        """Returns the class ids of `colors`, which were read from `path`."""
        ids = self._ids(colors.astype(np.int32) @ _BASE)
        if (unknown := ids < 0).any():
            if not self._ignore_unknown:
                raise UserError(f"{path} holds {self._describe(colors[unknown])}")
            ids[unknown] = IGNORE_LABEL
        return ids.astype(np.uint8)

    def _describe(self, unknown: UInt8[np.ndarray, "N 3"]) -> str:
        """Names the most frequent unknown color and the nearest known one."""
        found, counts = np.unique(unknown, axis=0, return_counts=True)
        most = counts.argmax()
        color = found[most].tolist()
        others = f" and {len(found) - 1} more unknown colors" if len(found) > 1 else ""
        if len(found) > len(self._names):
            others += ", as smoothing or JPEG produces them"
        near = min(self._names, key=lambda known: np.square(np.subtract(known, color)).sum())
        return (
            f"the color {hexadecimal(color)} ({counts[most]} pixels){others}; the nearest is "
            f"{hexadecimal(near)} ({self._names[near]}), allowed are {self._known}"
        )
