"""Builder of `ade20k`: scenes of all kinds, the 150 classes of the scene parsing benchmark."""

import pathlib
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from jaxtyping import UInt8

from kdjax.data.preparing.classes import ClassTable, LabelMap
from kdjax.data.preparing.conversion import Pair, PublishedBuilder, pair_up
from kdjax.data.preparing.image_io import read_values
from kdjax.data.preparing.tree import Tree

_TABLE = ClassTable.read(pathlib.Path(__file__).parent / "classes.csv")
# The benchmark ignores 0, which is everything else.
_IDS = LabelMap(_TABLE.ids(ignored=[0]), "0..150")


class Ade20k(PublishedBuilder):
    """Scenes indoors and outdoors with labels of 150 classes (SceneParse150)."""

    CLASSES = _TABLE
    PUBLISHED: ClassVar[Mapping[str, int]] = {"train": 20210, "val": 2000}
    SOURCE = "the folder ADEChallengeData2016 or its archive"

    def pairs_in(self, tree: Tree) -> dict[str, list[Pair]]:
        """Pairs by name. `training` and `validation` become `train` and `val`."""
        return {
            split: pair_up(
                tree.files(f"images/{folder}", suffix=".jpg"),
                tree.files(f"annotations/{folder}", suffix=".png"),
            )
            for split, folder in (("train", "training"), ("val", "validation"))
        }

    def read_label(self, path: pathlib.Path) -> UInt8[np.ndarray, "H W"]:
        """Maps 1..150 to 0..149."""
        return _IDS(read_values(path), path)
