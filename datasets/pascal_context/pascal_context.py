"""Builder of `pascal_context`: VOC 2010's photos with every pixel labeled, 59 or 60 classes."""

import pathlib
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from jaxtyping import UInt8

from kdjax.data.preparing.classes import ClassTable, LabelMap
from kdjax.data.preparing.conversion import Pair, PublishedBuilder, pair_listed, read_split
from kdjax.data.preparing.image_io import read_matlab, read_values
from kdjax.data.preparing.tree import Tree
from kdjax.utils.classes import IGNORE_LABEL
from kdjax.utils.errors import UserError

_TABLE = ClassTable.read(pathlib.Path(__file__).parent / "classes.csv")
_NUM_LABELS = 460  # in the MATLAB annotations; most are too rare to be a class


class PascalContext(PublishedBuilder):
    """Photos with labels of 59 kinds of objects and surroundings.

    With 59 classes, everything else is ignored; with 60, it is the class `background`, id 0.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = ("classes",)
    CLASSES = _TABLE
    PUBLISHED: ClassVar[Mapping[str, int]] = {"train": 4998, "val": 5105}
    SOURCE = (
        "the folder that holds VOCdevkit/VOC2010 and, unless it has SegmentationClassContext/, "
        "the MATLAB annotations trainval/; or their archives"
    )

    def __init__(self, *, classes: int = 59, **kwargs):
        """Finds the files. `classes` is 59 or 60."""
        if classes not in (59, 60):
            raise UserError(f"pascal_context has 59 or 60 classes, not {classes}")
        self._first = 60 - classes  # the line of the table that becomes id 0
        matlab = dict.fromkeys(range(_NUM_LABELS), 0) | _TABLE.ids()
        png = {line: line for line in range(len(_TABLE.names))}
        self._matlab_ids = LabelMap(self._shifted(matlab), f"0..{_NUM_LABELS - 1}")
        self._png_ids = LabelMap(self._shifted(png), "0..59")
        super().__init__(**kwargs)

    def _shifted(self, lines: dict[int, int]) -> dict[int, int]:
        """Returns the class ids of label values, given their lines in the table."""
        return {
            value: line - self._first if line >= self._first else IGNORE_LABEL
            for value, line in lines.items()
        }

    @property
    def classes(self) -> ClassTable:
        """The classes, with or without background."""
        first = self._first
        return ClassTable(_TABLE.names[first:], _TABLE.palette[first:], _TABLE.labels[first:])

    def pairs_in(self, tree: Tree) -> dict[str, list[Pair]]:
        """Pairs by the lists of the converted labels, or else by those of VOC 2010."""
        images = tree.files("VOC2010/JPEGImages", "JPEGImages", suffix=".jpg")
        folder = "SegmentationClassContext"
        if labels := tree.find(f"VOC2010/{folder}", folder, suffix=".png"):
            folder = "ImageSets/SegmentationContext"
        else:
            labels, folder = tree.files("trainval", suffix=".mat"), "ImageSets/Main"
        lists = tree.files(f"VOC2010/{folder}", folder, suffix=".txt")
        return {
            split: pair_listed(read_split(lists, split), images, labels, lists.files[split])
            for split in self.PUBLISHED
        }

    def read_label(self, path: pathlib.Path) -> UInt8[np.ndarray, "H W"]:
        """Reads a converted PNG or a MATLAB file."""
        if path.suffix == ".png":
            return self._png_ids(read_values(path), path)
        return self._matlab_ids(read_matlab(path, "LabelMap"), path)
