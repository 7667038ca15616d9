"""Where the folders of data sets lie, and the tables of their classes in them."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Integer, UInt8

from kdjax.data.preparing.tree import File
from kdjax.utils import files
from kdjax.utils.classes import IGNORE_LABEL, LabelTable, hexadecimal, read_table
from kdjax.utils.errors import UserError
from kdjax.utils.imports import SEPARATOR, closest_match

SEARCH_PATH = "KDJAX_DATASETS"

Color: TypeAlias = tuple[int, int, int]  # RGB, 0..255


def builder_folders() -> list[pathlib.Path]:
    """The folder `NAME`, with its `NAME.py`, of every data set, kdjax's own last.

    They stand in the folders that the environment variable KDJAX_DATASETS names, separated as in
    PATH, and in kdjax's own.

    Raises:
      UserError: one of those folders is not there.
    """
    return [
        path.parent
        for root in _roots()
        for path in sorted(root.glob("*/*.py"))
        if path.stem == path.parent.name
    ]


def builder_folder(name: str) -> pathlib.Path:
    """The folder of one data set.

    Raises:
      UserError: there is no such data set, there are several, or as for `builder_folders`.
    """
    folders = builder_folders()
    found = [folder for folder in folders if folder.name == name]
    if not found:
        raise UserError(_unknown(name, folders))
    # Records are kept by the name of their set: those of one would be taken for the other's.
    if len(found) > 1:
        raise UserError(
            f"several data sets have the name {name!r}: {' and '.join(map(str, found))}; rename "
            f"your own, or take its folder out of {SEARCH_PATH}"
        )
    return found[0]


def _roots() -> list[pathlib.Path]:
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
    return [*roots, own]


def _unknown(name: str, folders: list[pathlib.Path]) -> str:
    by_root: dict[pathlib.Path, list[str]] = {}
    for folder in folders:
        by_root.setdefault(folder.parent, []).append(folder.name)
    near = closest_match(name, [folder.name for folder in folders])
    hint = f'did you mean "{near}"? ' if near else ""
    known = "; ".join(f"{', '.join(names)} (in {root})" for root, names in by_root.items())
    return (
        f"unknown data set {name!r}: {hint}there are: {known}; a builder of your own may be named "
        '"package.module:attribute"'
    )


_TABLE = "classes.csv"  # in the folder of a data set's builder


@dataclasses.dataclass(frozen=True)
class ClassTable:
    """The classes of a data set, in the order of their ids 0..K-1.

    Attributes:
      names: of the K classes.
      palette: their RGB colours.
      labels: the value that stands for each in the original labels.
    """

    names: list[str]
    palette: UInt8[np.ndarray, "K 3"]
    labels: list[int]

    @classmethod
    def read(cls, path: pathlib.Path) -> "ClassTable":
        """Reads columns label, name, red, green, blue; lines that begin with # are comments."""
        rows = read_table(path)
        return cls(
            names=[row["name"] for row in rows],
            palette=np.array([color_of(row) for row in rows], np.uint8),
            labels=[int(row["label"]) for row in rows],
        )

    def ids(self, *, ignored: Iterable[int] = ()) -> dict[int, int]:
        """Class id of each label value, 255 of the `ignored` ones."""
        classes = {label: number for number, label in enumerate(self.labels)}
        return {**dict.fromkeys(ignored, IGNORE_LABEL), **classes}


def original_labels(name: str) -> list[int]:
    """The value that stands for each class of a data set in its original labels.

    Raises:
      UserError: no such set, or its labels have class ids already.
    """
    known = [path.name for path in builder_folders() if (path / _TABLE).is_file()]
    if name not in known:
        raise UserError(f"{name!r} has no original ids; data sets that do: {', '.join(known)}")
    return ClassTable.read(builder_folder(name) / _TABLE).labels


def known_classes(name: str) -> int:
    """The number of classes of a data set by its table, as it is prepared by default.

    A row that says so in a column `optional` is a class that only an option of the builder adds.

    Raises:
      UserError: no such set, or its classes depend on its files, as those of `folder`.
    """
    by_class = SEPARATOR in name  # which lies beside no table
    table = None if by_class else builder_folder(name) / _TABLE
    if table is None or not table.is_file():
        raise UserError(f"how many classes has data set {name}? No table says: give --num_classes")
    return sum(not row.get("optional") for row in read_table(table))


def color_of(row: Mapping[str, str]) -> Color:
    """RGB of a table's row."""
    return int(row["red"]), int(row["green"]), int(row["blue"])


class LabelMap:
    """Turns the values of original labels into class ids, and refuses those it does not know."""

    def __init__(self, ids: Mapping[int, int], known: str):
        """Maps by `ids`, whose keys `known` describes, for messages."""
        self._ids = LabelTable(ids)
        self._known = known

    def __call__(self, values: Integer[np.ndarray, "H W"], file: File) -> UInt8[np.ndarray, "H W"]:
        """Class ids of `values`, which were read from `file`.

        Raises:
          UserError: a value is none of the known ones.
        """
        ids = self._ids(values)
        if (unknown := ids < 0).any():
            value = values[unknown][0]
            raise UserError(f"{file} holds the value {value}; allowed are {self._known}")
        return ids.astype(np.uint8)


_BASE = np.array([1 << 16, 1 << 8, 1], np.int32)  # makes one number of a colour


class ColorMap:
    """Turns the colours of labels into class ids, and refuses those it does not know."""

    def __init__(
        self,
        ids: Mapping[Color, int],
        names: Sequence[str],
        known: str,
        *,
        ignore_unknown: bool = False,
    ):
        """Describes the colours.

        Args:
          ids: class id, or 255, of each known colour.
          names: of the classes, for messages.
          known: describes the colours, for messages.
          ignore_unknown: whether other colours become 255.
        """
        self._names = {color: names[i] if i < len(names) else "ignored" for color, i in ids.items()}
        self._ids = LabelTable({int(_BASE @ color): number for color, number in ids.items()})
        self._known = known
        self._ignore_unknown = ignore_unknown

    def __call__(self, colors: UInt8[np.ndarray, "H W 3"], file: File) -> UInt8[np.ndarray, "H W"]:
        """Class ids of `colors`, which were read from `file`.

        Raises:
          UserError: a colour is none of the known ones.
        """
        ids = self._ids(colors.astype(np.int32) @ _BASE)
        if (unknown := ids < 0).any():
            if not self._ignore_unknown:
                raise UserError(f"{file} holds {self._describe(colors[unknown])}")
            ids[unknown] = IGNORE_LABEL
        return ids.astype(np.uint8)

    def _describe(self, unknown: UInt8[np.ndarray, "N 3"]) -> str:
        """The most frequent of the unknown colours, and which ones are known."""
        found, counts = np.unique(unknown, axis=0, return_counts=True)
        most = counts.argmax()
        color = found[most].tolist()
        others = f" and {len(found) - 1} more that are not known" if len(found) > 1 else ""
        if len(found) > len(self._names):
            others += ", as smoothing or JPEG makes them"
        near = min(self._names, key=lambda known: np.square(np.subtract(known, color)).sum())
        return (
            f"the colour {hexadecimal(color)} ({counts[most]} pixels){others}; the nearest is "
            f"{hexadecimal(near)} ({self._names[near]}), allowed are {self._known}"
        )
