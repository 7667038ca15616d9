"""Several splits, of one data set or of several, read as one source with a fixed share each."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from kdjax.classes import IGNORE_LABEL
from kdjax.data import tiles
from kdjax.data._tensorflow import tf
from kdjax.data.interface import Split
from kdjax.data.records import Records
from kdjax.data.tiles import Read


@dataclasses.dataclass(frozen=True)
class Part:
    """A split in a mixture.

    Attributes:
        records: its examples.
        weight: how many of every `sum of weights` examples in a row come from it.
        labelled: False where its labels are not used: they become 255 throughout, so that only
            losses that read no label learn from its images.
    """

    records: Split
    weight: int = 1
    labelled: bool = True


class _Fetched(NamedTuple):
    """Examples of a mixture, `[B]`: in which part, where in it, and what was read of them."""

    record: tf.Tensor
    member: tf.Tensor
    place: tf.Tensor
    labelled: tf.Tensor


class Mixture:
    """A `Source` over the examples of several parts, one part after the other."""

    def __init__(self, parts: Sequence[Part]):
        self._parts = tuple(parts)
        self.lengths = tuple(len(part.records) for part in parts)
        self.weights = tuple(part.weight for part in parts)
        self._ends = np.cumsum(self.lengths)
        # Records all open alike, so that nothing has to be chosen among them.
        self._alike = all(isinstance(part.records, Records) for part in parts)

    def __len__(self) -> int:
        return sum(self.lengths)

    def fetch(self, indices: tf.Tensor) -> _Fetched:
        """As `Source` has it: reads what the parts have serialized."""

        def read(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
            members = np.searchsorted(self._ends, indices, "right")
            places = indices - np.array([0, *self._ends])[members]
            records = np.empty(len(indices), object)
            for member in np.unique(members):
                part, rows = self._parts[member], np.flatnonzero(members == member)
                records[rows] = part.records.read(places[rows].tolist())
            labelled = np.array([self._parts[member].labelled for member in members])
            return records, members.astype(np.int32), places, labelled

        types = [tf.string, tf.int32, tf.int64, tf.bool]
        found = tf.numpy_function(read, [indices], types)
        return _Fetched(*(tf.ensure_shape(tensor, [None]) for tensor in found))

    def decode(self, fetched: _Fetched) -> tuple[tf.Tensor, Read]:
        """As `Source` has it."""
        if self._alike or len(self._parts) == 1:
            opened = self._parts[0].records.open(fetched.record, fetched.place)
        else:
            opened = tf.switch_case(
                fetched.member,
                [
                    functools.partial(part.records.open, fetched.record, fetched.place)
                    for part in self._parts
                ],
            )
        label = tf.where(fetched.labelled, opened.label, tf.constant(IGNORE_LABEL, tf.uint8))
        return label, tiles.reader(opened)

    def check(self, indices: Sequence[int]) -> None:
        """As `Source` has it."""
        for index in indices:
            member = int(np.searchsorted(self._ends, index, "right"))
            begin = self._ends[member] - self.lengths[member]
            self._parts[member].records.check([int(index - begin)])

    def decoded(self) -> Iterator[dict[str, Any]]:
        """All examples in the order of their indices, decoded in parallel, as NumPy."""
        for part in self._parts:
            for example in part.records.decoded(range(len(part.records))):
                label = example["label"]
                if not part.labelled:
                    label = np.full_like(label, IGNORE_LABEL)
                yield {"image": example["image"], "label": label}

    def sample_sizes(self, count: int) -> list[tuple[int, int]]:
        """Height and width of up to about `count` examples, spread over each part in turn."""
        sizes = []
        for part in self._parts:
            share = max(count * len(part.records) // len(self), 1)
            places = np.unique(np.linspace(0, len(part.records) - 1, share).astype(int))
            sizes += part.records.sizes(places.tolist())
        return sizes
