"""Decoded examples in memory: a small set that is read once, or arrays that a user has."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kdjax.classes import IGNORE_LABEL
from kdjax.data.augmentation import IMAGE_PADDING

if TYPE_CHECKING:
    import tensorflow as tf

    from kdjax.data.tiles import Read


class HeldExamples:
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

    def decode(self, fetched: "tf.Tensor") -> "tuple[tf.Tensor, Read]":
        """As `Source` has it: TensorFlow copies the label, and of the image only the window."""
        from kdjax.data import tiles
        from kdjax.data._tensorflow import tf

        def cut(index: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
            return self._images[index][begin[0] : end[0], begin[1] : end[1]]

        def read(begin: tf.Tensor, end: tf.Tensor) -> tiles.Window:
            image = tf.numpy_function(cut, [fetched, begin, end], tf.uint8)
            return tiles.whole(tf.ensure_shape(image, [None, None, 3]))._replace(corner=begin)

        label = tf.numpy_function(lambda index: self._labels[index], [fetched], tf.uint8)
        return tf.ensure_shape(label, [None, None]), read

    def check(self, indices: Sequence[int]) -> None:
        """Nothing: what is an array here has been decoded."""

    def padded(self) -> dict[str, Any]:
        """All examples in three arrays, as `kdjax.data.device_augment.Held` describes them."""
        sizes = np.array([label.shape for label in self._labels], np.int32)
        height, width = sizes.max(0)
        images = np.empty((len(self), height, width, 3), np.uint8)
        images[:] = IMAGE_PADDING
        labels = np.full((len(self), height, width), IGNORE_LABEL, np.uint8)
        for row, (h, w) in enumerate(sizes):
            images[row, :h, :w], labels[row, :h, :w] = self._images[row], self._labels[row]
        return {"image": images, "label": labels, "size": sizes}
