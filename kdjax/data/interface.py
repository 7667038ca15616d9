"""The protocol of an open data set."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Protocol

import numpy as np
from jaxtyping import UInt8

from kdjax.utils.bands import Bands

if TYPE_CHECKING:
    from kdjax.data.loading.records import Records


class SegmentationSet(Protocol):
    """An open data set: a `kdjax.data.Dataset` or a prepared set.

    Attributes:
      name: the name of the set.
      class_names: the names of the K classes.
      palette: an RGB color for each class.
      fingerprint: 16 hexadecimal digits that change with the content of the set.
      splits: the names of the splits.
      bands: the bands of its images.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def class_names(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def palette(self) -> UInt8[np.ndarray, "K 3"]: ...  # noqa: D102

    @property
    def fingerprint(self) -> str: ...  # noqa: D102

    @property
    def splits(self) -> Collection[str]: ...  # noqa: D102

    @property
    def bands(self) -> Bands: ...  # noqa: D102

    def records(self, split: str) -> "Records":
        """Returns the examples of a split, by index.

        Raises:
          UserError: if the set has no such split.
        """
        ...
