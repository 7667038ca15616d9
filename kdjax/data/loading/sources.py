"""What training reads: several splits as one, each with its part, or examples in memory."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kdjax.data.interface import Split, WindowReader
from kdjax.data.loading.sampling import IMAGE_PADDING
from kdjax.utils.classes import IGNORE_LABEL


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

    record: "tf.Tensor"
    member: "tf.Tensor"
    place: "tf.Tensor"
    labelled: "tf.Tensor"


class Mixture:
    """A `Source` over the examples of several parts, one part after the other."""

    def __init__(self, parts: Sequence[Part]):
        self._parts = tuple(parts)
        self.lengths = tuple(len(part.records) for part in parts)
        self.weights = tuple(part.weight for part in parts)
        self._ends = np.cumsum(self.lengths)

    def __len__(self) -> int:
        return sum(self.lengths)

    def fetch(self, indices: "tf.Tensor") -> _Fetched:
        """As `Source` has it: reads what the parts have serialized."""
        from kdjax.data._tensorflow import tf

        def read(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
            members = np.searchsorted(self._ends, indices, "right")
            places = indices - np.array([0, *self._ends])[members]
            records = np.empty(len(indices), object)
            for member in np.unique(members):
                part, rows = self._parts[member], np.flatnonzero(members == member)
                records[rows] = part.records.read_serialized(places[rows].tolist())
            labelled = np.array([self._parts[member].labelled for member in members])
            return records, members.astype(np.int32), places, labelled

        types = [tf.string, tf.int32, tf.int64, tf.bool]
        found = tf.numpy_function(read, [indices], types)
        return _Fetched(*(tf.ensure_shape(tensor, [None]) for tensor in found))

    def decode(self, fetched: _Fetched) -> "tuple[tf.Tensor, WindowReader]":
        """As `Source` has it."""
        from kdjax.data._tensorflow import tf
        from kdjax.data.loading import records

        # Records all open alike, so that nothing has to be chosen among them.
        alike = all(isinstance(part.records, records.Records) for part in self._parts)
        if alike or len(self._parts) == 1:
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
        return label, records.window_reader(opened)

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


if TYPE_CHECKING:
    import tensorflow as tf


class InMemoryExamples:
    """Examples as NumPy arrays, by index; a `Source` of the pipeline, and of the device's cache.

    Needs no TensorFlow, except to be read by the pipeline.
    """

    def __init__(
        self,
        examples: Iterable[Mapping[str, np.ndarray]],
        lengths: Sequence[int] | None = None,
        weights: Sequence[int] = (1,),
    ):
        """Takes `image`, uint8 `[H, W, 3]`, and `label`, uint8 `[H, W]`, of every example.

        Args:
          examples: of all sets, one set after the other.
          lengths: number of examples of each set; None where there is one set.
          weights: how many of the examples in a row come from each set.

        Raises:
          ValueError: an example has another form.
        """
        self._images: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        for number, example in enumerate(examples):
            image, label = example["image"], example["label"]
            if image.shape != (*label.shape, 3) or not image.dtype == label.dtype == np.uint8:
                raise ValueError(
                    f"example {number}: image {image.dtype} {image.shape} and label {label.dtype} "
                    f"{label.shape}; they must be uint8, [H, W, 3] and [H, W]"
                )
            self._images.append(image)
            self._labels.append(label)
        self.lengths = tuple(lengths or (len(self._images),))
        self.weights = tuple(weights)

    def __len__(self) -> int:
        return len(self._images)

    def fetch(self, indices: "tf.Tensor") -> "tf.Tensor":
        """The indices: there is nothing to read."""
        return indices

    def decode(self, fetched: "tf.Tensor") -> "tuple[tf.Tensor, WindowReader]":
        """As `Source` has it: TensorFlow copies the label, and of the image only the window."""
        from kdjax.data._tensorflow import tf
        from kdjax.data.loading import records

        def cut(index: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
            return self._images[index][begin[0] : end[0], begin[1] : end[1]]

        def read_window(begin: tf.Tensor, end: tf.Tensor) -> records.Window:
            image = tf.numpy_function(cut, [fetched, begin, end], tf.uint8)
            return records.whole_window(tf.ensure_shape(image, [None, None, 3]))._replace(
                corner=begin
            )

        label = tf.numpy_function(lambda index: self._labels[index], [fetched], tf.uint8)
        return tf.ensure_shape(label, [None, None]), read_window

    def check(self, indices: Sequence[int]) -> None:
        """Nothing: what is an array here has been decoded."""

    def padded(self) -> dict[str, Any]:
        """All examples in three arrays, as `kdjax.data.loading.device_augment` describes them."""
        sizes = np.array([label.shape for label in self._labels], np.int32)
        height, width = sizes.max(0)
        images = np.empty((len(self), height, width, 3), np.uint8)
        images[:] = IMAGE_PADDING
        labels = np.full((len(self), height, width), IGNORE_LABEL, np.uint8)
        for row, (h, w) in enumerate(sizes):
            images[row, :h, :w], labels[row, :h, :w] = self._images[row], self._labels[row]
        return {"image": images, "label": labels, "size": sizes}
