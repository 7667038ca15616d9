"""Builder of `coco_stuff`: the 164k images of COCO 2017, labeled with 171 things and stuff."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from jaxtyping import UInt8

from kdjax.data.preparing.classes import ClassTable, LabelMap
from kdjax.data.preparing.conversion import Pair, PublishedBuilder, pair_up
from kdjax.data.preparing.image_io import read_values
from kdjax.data.preparing.tree import Tree
from kdjax.utils.classes import IGNORE_LABEL

_TABLE = ClassTable.read(pathlib.Path(__file__).parent / "classes.csv")
# 11 of the 182 labels that COCO once planned are unused, and refused.
_IDS = LabelMap(
    _TABLE.ids(ignored=[IGNORE_LABEL]),
    "255 and the labels of datasets/coco_stuff/classes.csv, from 0 to 181",
)
# mmsegmentation writes other labels with these names into the same folder.
_DERIVED = "_labelTrainIds"


class CocoStuff(PublishedBuilder):
    """Everyday scenes with labels of 80 things and 91 stuffs."""

    CLASSES = _TABLE
    PUBLISHED: ClassVar[Mapping[str, int]] = {"train": 118287, "val": 5000}
    SOURCE = "the folder that holds train2017, val2017 and the stuffthingmaps, or their archives"

    def pairs_in(self, tree: Tree) -> dict[str, list[Pair]]:
        """Pairs by name. Images and labels both lie in folders `train2017` and `val2017`."""
        pairs = {}
        for split in self.PUBLISHED:
            labels = tree.files(f"{split}2017", suffix=".png")
            raw = {name: f for name, f in labels.files.items() if not name.endswith(_DERIVED)}
            pairs[split] = pair_up(
                tree.files(f"{split}2017", suffix=".jpg"), dataclasses.replace(labels, files=raw)
            )
        return pairs

    def read_label(self, path: pathlib.Path) -> UInt8[np.ndarray, "H W"]:
        """Reads the values of the stuffthingmaps."""
        return _IDS(read_values(path), path)
