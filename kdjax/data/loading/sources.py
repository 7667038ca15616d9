"""Examples that training reads: splits mixed by weight, or arrays in memory."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kdjax.utils.bands import RGB, Bands
from kdjax.utils.classes import IGNORE_LABEL

if TYPE_CHECKING:
    import tensorflow as tf

    from kdjax.data.loading.records import Records, WindowReader


@dataclasses.dataclass(frozen=True)
class Part:
    """A split in a mixture.

    Attributes:
      records: its examples.
      weight: how many of every `sum of weights` examples in a row come from it.
      labelled: False to replace its labels by 255, so that only losses without labels use it.
    """

    records: "Records"
    weight: int = 1
    labelled: bool = True


class _Fetched(NamedTuple):
    """Serialized examples, `[B]`, and whether their labels are used."""

    record: "tf.Tensor"
    labelled: "tf.Tensor"


class Mixture:
    """The examples of several parts, one part after the other.

    Attributes:
      lengths: the number of examples of each part.
      weights: how many of the examples in a row come from each part.
      bands: the bands of the images of all parts.
    """

    def __init__(self, parts: Sequence[Part]):
        self._parts = tuple(parts)
        self.bands = parts[0].records.bands
        self.lengths = tuple(len(part.records) for part in parts)
        self.weights = tuple(part.weight for part in parts)
        self._ends = np.cumsum(self.lengths)

    def __len__(self) -> int:
        return sum(self.lengths)

    def _locate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the part of each example, and its place there."""
        members = np.searchsorted(self._ends, indices, "right")
        return members, indices - np.array([0, *self._ends])[members]

    def fetch(self, indices: "tf.Tensor") -> _Fetched:
        """Reads examples, int64 `[B]`, in a graph."""
        from kdjax.data._tensorflow import tf

        def read(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            members, places = self._locate(indices)
            records = np.empty(len(indices), object)
            for member in np.unique(members):
                rows = np.flatnonzero(members == member)
                part = self._parts[member]
                records[rows] = part.records.read_serialized(places[rows].tolist())
            labelled = np.array([self._parts[member].labelled for member in members])
            return records, labelled

        found = tf.numpy_function(read, [indices], [tf.string, tf.bool])
        return _Fetched(*(tf.ensure_shape(tensor, [None]) for tensor in found))

    def decode(self, fetched: _Fetched) -> "tuple[tf.Tensor, WindowReader]":
        """Returns the label, uint8 `[H, W]`, of one fetched example, and its image reader."""
        from kdjax.data._tensorflow import tf
        from kdjax.data.loading import records

        _, label, read_window = records.open_example(fetched.record, self.bands)
        label = tf.where(fetched.labelled, label, tf.constant(IGNORE_LABEL, tf.uint8))
        return label, read_window

    def check(self, indices: Sequence[int]) -> None:
        """Reads examples one by one, and raises a `UserError` for the first that is damaged."""
        for member, place in zip(*self._locate(np.array(indices, int)), strict=True):
            self._parts[member].records.check(int(place))

    def decoded(self) -> Iterator[dict[str, Any]]:
        """Yields the images and labels of all examples, decoded in parallel, as NumPy."""
        for part in self._parts:
            for example in part.records.decoded(range(len(part.records))):
                label = example["label"]
                if not part.labelled:
                    label = np.full_like(label, IGNORE_LABEL)
                yield {"image": example["image"], "label": label}

    def sample_sizes(self, count: int) -> list[tuple[int, int]]:
        """Returns height and width of about `count` examples, evenly spread over each part."""
        sizes = []
        for part in self._parts:
            share = max(count * len(part.records) // len(self), 1)
            places = np.unique(np.linspace(0, len(part.records) - 1, share).astype(int))
            sizes += part.records.sizes(places.tolist())
        return sizes


class InMemoryExamples:
    """Examples in NumPy arrays, in place of a `Mixture` in the pipeline, or for the devices.

    Only the pipeline needs TensorFlow.
    """

    def __init__(
        self,
        examples: Iterable[Mapping[str, np.ndarray]],
        lengths: Sequence[int] | None = None,
        weights: Sequence[int] = (1,),
        *,
        bands: Bands = RGB,
    ):
        """Stores `image`, uint8 `[H, W, 3]`, and `label`, uint8 `[H, W]`, of every example.

        Args:
          examples: the examples of all sets, one set after the other.
          lengths: the number of examples of each set; None for one set.
          weights: how many of the examples in a row come from each set.
          bands: the bands of the images, if they are not photos.

        Raises:
          ValueError: if an example has another form.
        """
        self._images: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        for number, example in enumerate(examples):
            image, label = example["image"], example["label"]
            fits = image.shape == (*label.shape, bands.channels) and image.dtype == bands.dtype
            if not fits or label.dtype != np.uint8:
                raise ValueError(
                    f"example {number}: image {image.dtype} {image.shape} and label {label.dtype} "
                    f"{label.shape}; they must be {bands.dtype} [H, W, {bands.channels}] and uint8 "
                    "[H, W]"
                )
            self._images.append(image)
            self._labels.append(label)
        self.lengths = tuple(lengths or (len(self._images),))
        self.weights = tuple(weights)
        self.bands = bands

    def __len__(self) -> int:
        return len(self._images)

    def fetch(self, indices: "tf.Tensor") -> "tf.Tensor":
        """Returns the indices: there is nothing to read."""
        return indices

    def decode(self, fetched: "tf.Tensor") -> "tuple[tf.Tensor, WindowReader]":
        """Copies the label to TensorFlow, and the window of the image on demand."""
        from kdjax.data._tensorflow import tf
        from kdjax.data.loading.records import Window

        def cut(index: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
            return self._images[index][begin[0] : end[0], begin[1] : end[1]]

        def read_window(begin: "tf.Tensor", end: "tf.Tensor") -> Window:
            image = tf.numpy_function(cut, [fetched, begin, end], self.bands.dtype)
            image = tf.ensure_shape(image, [None, None, self.bands.channels])
            return Window(image[None], tf.constant(1), begin)

        label = tf.numpy_function(lambda index: self._labels[index], [fetched], tf.uint8)
        return tf.ensure_shape(label, [None, None]), read_window

    def check(self, indices: Sequence[int]) -> None:
        """Does nothing: the examples are already decoded."""

    def padded(self) -> dict[str, Any]:
        """Returns all examples as `kdjax.data.loading.device_augment.PaddedExamples`."""
        sizes = np.array([label.shape for label in self._labels], np.int32)
        height, width = sizes.max(0)
        images = np.empty((len(self), height, width, self.bands.channels), self.bands.dtype)
        images[:] = self.bands.padding
        labels = np.full((len(self), height, width), IGNORE_LABEL, np.uint8)
        for row, (h, w) in enumerate(sizes):
            images[row, :h, :w], labels[row, :h, :w] = self._images[row], self._labels[row]
        return {"image": images, "label": labels, "size": sizes}
