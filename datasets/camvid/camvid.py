"""Builder of `camvid`: street scenes from a car, 11 classes."""

import pathlib
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from jaxtyping import UInt8

from kdjax.data.preparing.classes import ClassTable, ColorMap, LabelMap, color_of
from kdjax.data.preparing.conversion import Pair, PublishedBuilder, pair_listed, pair_up
from kdjax.data.preparing.image_io import read_label, read_values
from kdjax.data.preparing.tree import Tree
from kdjax.utils.classes import IGNORE_LABEL, read_table

_HERE = pathlib.Path(__file__).parent
_TABLE = ClassTable.read(_HERE / "classes.csv")
_IDS = LabelMap(_TABLE.ids(ignored=[11, IGNORE_LABEL]), "0..11 and 255")


def _ids_of_colors() -> ColorMap:
    ids = {name: number for number, name in enumerate(_TABLE.names)} | {"": IGNORE_LABEL}
    colors = {color_of(row): ids[row["class"]] for row in read_table(_HERE / "colors.csv")}
    return ColorMap(colors, _TABLE.names, "the colors of datasets/camvid/colors.csv")


_COLOR_IDS = _ids_of_colors()
_COLOR_SUFFIX = "_L.png"


class Camvid(PublishedBuilder):
    """Frames of videos from a driving car with labels of 11 classes.

    From the copy of the SegNet tutorial (480 x 360 pixels), or from the original (960 x 720). The
    32 colors of the original are grouped into the same classes, its frames into the same splits.
    """

    CLASSES = _TABLE
    PUBLISHED: ClassVar[Mapping[str, int]] = {"train": 367, "val": 101, "test": 233}
    SOURCE = (
        "the SegNet tutorial's folder CamVid, or the one that holds 701_StillsRaw_full and "
        "LabeledApproved_full, or their archives"
    )

    def pairs_in(self, tree: Tree) -> dict[str, list[Pair]]:
        """Pairs by name, or the original by the lists in this folder."""
        labels = tree.find("LabeledApproved_full", suffix=_COLOR_SUFFIX)
        if labels is None:
            return {
                split: pair_up(
                    tree.files(f"CamVid/{split}", split, suffix=".png"),
                    tree.files(f"CamVid/{split}annot", f"{split}annot", suffix=".png"),
                )
                for split in self.PUBLISHED
            }
        images = tree.files("701_StillsRaw_full", suffix=".png")
        pairs = {}
        for split in self.PUBLISHED:
            path = _HERE / f"{split}.txt"
            pairs[split] = pair_listed(path.read_text().split(), images, labels, path)
        return pairs

    def read_label(self, path: pathlib.Path) -> UInt8[np.ndarray, "H W"]:
        """Reads one channel of class ids, or the colors of the original."""
        if path.name.endswith(_COLOR_SUFFIX):
            return _COLOR_IDS(np.asarray(read_label(path).convert("RGB")), path)
        return _IDS(read_values(path), path)
