"""Random access to the records of a prepared split, and their decoding."""

import functools
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, cast

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from kdjax.data import tiles
from kdjax.data._tensorflow import tf, traced_as_written

_SCHEMA = {
    "image": tf.io.FixedLenSequenceFeature([], tf.string, allow_missing=True),  # tiles, or a file
    "label": tf.io.FixedLenFeature([], tf.string),
    "name": tf.io.FixedLenFeature([], tf.string),
}
_READ_SIZE = 32  # records fetched by one call when many are read in a row


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

    def fetch(self, indices: tf.Tensor) -> Any:
        """Reads, within a graph, int64 `[B]`: tensors with an axis `[B]`."""

    def decode(self, fetched: Any) -> tuple[tf.Tensor, tiles.Read]:
        """Of one of those the label, uint8 `[H, W]`, and what decodes a window of the image."""
        ...


class Records:
    """Serialized examples of one split, by index. Safe to read from several threads at once."""

    def __init__(self, files: Sequence[str], length: int):
        """Looks into array_record `files`, which hold `length` records together."""
        self._source = ArrayRecordDataSource(list(files))
        self._sizes: dict[int, tuple[int, int]] = {}
        if len(self._source) != length:
            raise ValueError(f"{files} hold {len(self._source)} records instead of {length}")

    def __len__(self) -> int:
        return len(self._source)

    @property
    def lengths(self) -> tuple[int, ...]:
        """As `Source` has it."""
        return (len(self),)

    @property
    def weights(self) -> tuple[int, ...]:
        """As `Source` has it."""
        return (1,)

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """The records at `indices`, in that order."""
        return list(self._source.__getitems__(indices))

    def fetch(self, indices: tf.Tensor) -> tf.Tensor:
        """As `read`, from within a graph: int64 `[B]` to strings `[B]`."""

        def read(indices: np.ndarray) -> np.ndarray:
            return np.array(self.read(indices.tolist()), object)

        return tf.ensure_shape(tf.numpy_function(read, [indices], tf.string), [None])

    def decode(self, fetched: tf.Tensor) -> tuple[tf.Tensor, tiles.Read]:
        """As `Source` has it."""
        _, label, read = _opened(fetched)
        return label, read

    def names(self) -> list[str]:
        """The names of all examples, without decoding their images."""
        schema = {"name": _SCHEMA["name"]}
        names: list[str] = []
        for start in range(0, len(self), _READ_SIZE):
            records = self.read(range(start, min(start + _READ_SIZE, len(self))))
            names += [
                name.decode() for name in tf.io.parse_example(records, schema)["name"].numpy()
            ]
        return names

    def sizes(self, indices: Sequence[int]) -> list[tuple[int, int]]:
        """Height and width of examples, from the headers of their labels; read once each."""
        unknown = sorted(set(indices) - self._sizes.keys())
        for start in range(0, len(unknown), _READ_SIZE):
            chunk = unknown[start : start + _READ_SIZE]
            schema = {"label": _SCHEMA["label"]}
            labels = tf.io.parse_example(self.read(chunk), schema)["label"].numpy()
            self._sizes |= {i: _png_size(png) for i, png in zip(chunk, labels, strict=True)}
        return [self._sizes[index] for index in indices]

    def decoded(self, indices: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Examples at `indices`, in that order, decoded in parallel: `decode`'s, as NumPy."""
        examples = (
            tf.data.Dataset.from_tensor_slices(np.asarray(indices, np.int64))
            .batch(_READ_SIZE)
            .map(traced_as_written(self.fetch))
            .unbatch()
            .map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            .prefetch(4)
        )
        return cast(Iterator[dict[str, Any]], examples.as_numpy_iterator())


def _png_size(png: bytes) -> tuple[int, int]:
    """Height and width: the first chunk of a PNG file begins with both, after 16 bytes."""
    width, height = struct.unpack(">II", png[16:24])
    return height, width


@traced_as_written
def decode(record: tf.Tensor) -> dict[str, tf.Tensor]:
    """Decodes a serialized example: `image` uint8 `[H, W, 3]`, `label` uint8 `[H, W]`, `name`."""
    name, label, read = _opened(record)
    everything = tf.zeros(2, tf.int32), tf.shape(label)
    return {"image": tiles.pixels(read(*everything), *everything), "label": label, "name": name}


def _opened(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tiles.Read]:
    """The name and the label of a serialized example, and what decodes a window of its image."""
    example = tf.io.parse_single_example(record, _SCHEMA)
    label = tf.io.decode_png(example["label"], channels=1)[..., 0]
    read = functools.partial(tiles.decode, example["image"], tf.shape(label))
    return example["name"], label, read
