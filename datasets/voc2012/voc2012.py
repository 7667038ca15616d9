"""Builder of `voc2012`: the 21 classes of Pascal VOC 2012, with the additional labels of SBD."""

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

_TABLE = ClassTable.read(pathlib.Path(__file__).parent / "classes.csv")
# 255 marks the borders of objects, and objects that are hard to recognize.
_IDS = LabelMap(_TABLE.ids(ignored=[IGNORE_LABEL]), "0..20 and 255")


class Voc2012(PublishedBuilder):
    """Photos with labels of 20 kinds of objects and background.

    `train_aug` adds to `train` all images that SBD has labeled and `val` does not hold. An image
    that VOC itself has labeled keeps that label.
    """

    CLASSES = _TABLE
    PUBLISHED: ClassVar[Mapping[str, int]] = {"train": 1464, "train_aug": 10582, "val": 1449}
    SOURCE = "the folder that holds VOCdevkit/VOC2012 and, for train_aug, SBD; or their archives"

    def pairs_in(self, tree: Tree) -> dict[str, list[Pair]]:
        """Pairs by the lists of VOC. `train_aug` exists only if there are labels for it."""
        images = tree.files("VOC2012/JPEGImages", "JPEGImages", suffix=".jpg")
        labels = tree.files("VOC2012/SegmentationClass", "SegmentationClass", suffix=".png")
        folder = "ImageSets/Segmentation"
        lists = tree.files(f"VOC2012/{folder}", folder, suffix=".txt")
        names = {split: read_split(lists, split) for split in ("train", "val")}
        pairs = {
            split: pair_listed(names[split], images, labels, lists.files[split]) for split in names
        }
        more = tree.find("dataset/cls", "cls", suffix=".mat") or tree.find(
            "SegmentationClassAug", suffix=".png"
        )
        if more:
            added = sorted(more.files.keys() - {*names["train"], *names["val"]})
            pairs["train_aug"] = sorted(
                [*pairs["train"], *pair_listed(added, images, more, more.folder)],
                key=lambda pair: pair.name,
            )
        return {split: pairs[split] for split in self.PUBLISHED if split in pairs}

    def read_label(self, path: pathlib.Path) -> UInt8[np.ndarray, "H W"]:
        """Reads a palette image of VOC or a MATLAB file of SBD."""
        if path.suffix == ".png":
            return _IDS(read_values(path), path)
        return _IDS(read_matlab(path, "GTcls", "Segmentation"), path)
