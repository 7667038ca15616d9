"""What training and evaluation need of a data set, whoever made it.

Prepared sets (`kdjax.data.preparing.prepared`) and sets of a user's own (`kdjax.data.dataset`) have
it alike.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import UInt8

if TYPE_CHECKING:
    import tensorflow as tf


class Window(NamedTuple):
    """A part of an image, in tiles that lie side by side.

    Attributes:
      tiles: uint8 `[n, h, w, 3]`, row by row.
      per_row: how many tiles lie in a row, int32.
      corner: row and column of the image at which the first tile begins, int32 `[2]`.
    """

    tiles: "tf.Tensor"
    per_row: "tf.Tensor"
    corner: "tf.Tensor"


# Decodes a part of an image that holds all from `begin` to before `end`, each int32 `[2]`, a row
# and a column.
WindowReader = Callable[["tf.Tensor", "tf.Tensor"], Window]


class Opened(NamedTuple):
    """An example of which only the label is decoded, or all.

    Attributes:
      label: uint8 `[H, W]`.
      encoded: the image as one file or as tiles, strings `[n]`; empty where it is decoded.
      pixels: the image, uint8 `[H, W, 3]`, where it is decoded; else empty.
    """

    label: "tf.Tensor"
    encoded: "tf.Tensor"
    pixels: "tf.Tensor"


class Source(Protocol):
    """Examples that training reads by index: one split, a mixture, or what memory holds.

    Attributes:
      lengths: number of examples of each set in it; indices count through all of them.
      weights: how many of the examples in a row come from each set.
    """

    @property
    def lengths(self) -> tuple[int, ...]: ...  # noqa: D102

    @property
    def weights(self) -> tuple[int, ...]: ...  # noqa: D102

    def fetch(self, indices: "tf.Tensor") -> Any:
        """Reads, within a graph, int64 `[B]`: tensors with an axis `[B]`."""

    def decode(self, fetched: Any) -> "tuple[tf.Tensor, WindowReader]":
        """Of one of those the label, uint8 `[H, W]`, and what decodes a window of the image."""
        ...

    def check(self, indices: Sequence[int]) -> None:
        """Reads and decodes examples one by one.

        Raises:
          UserError: names the first that cannot be.
        """


class Split(Source, Protocol):
    """The examples of one split of a set; a `Source`, and what evaluation and mixtures need."""

    def __len__(self) -> int: ...

    def read_serialized(self, indices: Sequence[int]) -> list[bytes]:
        """The serialized examples at `indices`; empty bytes where there is no such form."""
        ...

    def open(self, record: "tf.Tensor", index: "tf.Tensor") -> Opened:
        """Opens, within a graph, the example at `index`, of which `record` was read."""
        ...

    def names(self) -> list[str]:
        """The names of all examples."""
        ...

    def sizes(self, indices: Sequence[int]) -> list[tuple[int, int]]:
        """Height and width of examples."""
        ...

    def decoded(self, indices: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Examples in the order of `indices`, as NumPy.

        Yields:
          `image`, uint8 `[H, W, 3]`; `label`, uint8 `[H, W]`; `name`, bytes.

        Raises:
          UserError: an example cannot be read.
        """
        ...


class SegmentationSet(Protocol):
    """A data set that is open.

    Attributes:
      name: what it is called.
      class_names: of the K classes.
      palette: an RGB colour a class.
      fingerprint: 16 hexadecimal digits that change with what the set holds.
      splits: their names.
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

    def records(self, split: str) -> Split:
        """The examples of a split, by index.

        Raises:
          UserError: the set has no such split.
        """
        ...
