"""Builder of `cityscapes`: street scenes of 50 cities, the 19 classes of its benchmark."""

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
# Labels that are no class of the benchmark are ignored. The license plate's -1 is 255 in 8 bits.
_IDS = LabelMap(_TABLE.ids(ignored=(*range(34), IGNORE_LABEL)), "0..33 and 255")
_TRAIN_IDS = LabelMap({**{i: i for i in range(19)}, IGNORE_LABEL: IGNORE_LABEL}, "0..18 and 255")
_ID_SUFFIX, _TRAIN_ID_SUFFIX = "_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"


class Cityscapes(PublishedBuilder):
    """Street scenes of 2048 x 1024 pixels with fine labels of 19 classes.

    From `labelIds`, or from `labelTrainIds` if there are none. The test split is left out because
    its labels are not public.
    """

    CLASSES = _TABLE
    PUBLISHED: ClassVar[Mapping[str, int]] = {"train": 2975, "val": 500}
    SOURCE = "the folder that holds leftImg8bit/ and gtFine/, or their archives"

    def pairs_in(self, tree: Tree) -> dict[str, list[Pair]]:
        """Pairs by city and name."""
        pairs = {}
        for split in self.PUBLISHED:
            images = tree.files(f"leftImg8bit/{split}", suffix="_leftImg8bit.png")
            folder = f"gtFine/{split}"
            labels = (
                tree.find(folder, suffix=_ID_SUFFIX)
                or tree.find(folder, suffix=_TRAIN_ID_SUFFIX)
                or tree.files(folder, suffix=_ID_SUFFIX)  # says what is missing
            )
            pairs[split] = pair_up(images, labels)
        return pairs

    def read_label(self, path: pathlib.Path) -> UInt8[np.ndarray, "H W"]:
        """Reads either kind of ids."""
        ids = _TRAIN_IDS if path.name.endswith(_TRAIN_ID_SUFFIX) else _IDS
        return ids(read_values(path), path)
