"""Random access to the records of a prepared split, and their decoding."""

import itertools
import pathlib
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from kdjax.data import tiles
from kdjax.data._tensorflow import reason, tf, traced_as_written
from kdjax.data.interface import Opened
from kdjax.errors import UserError

_SCHEMA = {
    "image": tf.io.FixedLenSequenceFeature([], tf.string, allow_missing=True),  # tiles, or a file
    "label": tf.io.FixedLenFeature([], tf.string),
    "name": tf.io.FixedLenFeature([], tf.string),
}
_READ_SIZE = 32  # records fetched by one call when many are read in a row
# What array_record raises for files that are missing, cut or changed.
_UNREADABLE = (OSError, RuntimeError, ValueError, IndexError)


class Records:
    """Serialized examples of one split, by index. Safe to read from several threads at once.

    Attributes:
        directory: that holds the set.
    """

    def __init__(self, files: Sequence[str], length: int, split: str):
        """Looks into array_record `files` of `split`, which hold `length` records together.

        Raises:
            UserError: a file is missing or damaged.
        """
        self.directory = pathlib.Path(files[0]).parent
        self._split = split
        self._sizes: dict[int, tuple[int, int]] = {}
        try:
            self._source = ArrayRecordDataSource(list(files))
            found = len(self._source)
        except _UNREADABLE as error:
            path = pathlib.Path(next(filter(_cannot_be_opened, files), files[0]))
            what = f": {reason(error)}" if path.is_file() else " is missing"
            raise damaged(self.directory, f"{path.name}{what}") from error
        if found != length:
            raise damaged(
                self.directory, f"split {split} holds {found} records instead of {length}"
            )

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
        """The records at `indices`, in that order.

        Raises:
            UserError: one of them is damaged.
        """
        try:
            return list(self._source.__getitems__(indices))
        except _UNREADABLE as error:
            raise damaged(self.directory, f"split {self._split}: {reason(error)}") from error

    def fetch(self, indices: tf.Tensor) -> tf.Tensor:
        """As `read`, from within a graph: int64 `[B]` to strings `[B]`."""

        def read(indices: np.ndarray) -> np.ndarray:
            return np.array(self.read(indices.tolist()), object)

        return tf.ensure_shape(tf.numpy_function(read, [indices], tf.string), [None])

    def decode(self, fetched: tf.Tensor) -> tuple[tf.Tensor, tiles.Read]:
        """As `Source` has it."""
        _, opened = _opened(fetched)
        return opened.label, tiles.reader(opened)

    def open(self, record: tf.Tensor, index: tf.Tensor) -> Opened:
        """As `Split` has it; decodes the label."""
        del index
        return _opened(record)[1]

    def names(self) -> list[str]:
        """The names of all examples, without decoding their images."""
        names = [self._field("name", chunk) for chunk in _chunks(range(len(self)))]
        return [name.decode() for name in itertools.chain.from_iterable(names)]

    def sizes(self, indices: Sequence[int]) -> list[tuple[int, int]]:
        """Height and width of examples, from the headers of their labels; read once each."""
        unknown = sorted(set(indices) - self._sizes.keys())
        for chunk in _chunks(unknown):
            labels = self._field("label", chunk)
            self._sizes |= {i: _png_size(png) for i, png in zip(chunk, labels, strict=True)}
        return [self._sizes[index] for index in indices]

    def _field(self, key: str, indices: Sequence[int]) -> list[bytes]:
        try:
            return list(tf.io.parse_example(self.read(indices), {key: _SCHEMA[key]})[key].numpy())
        except tf.errors.OpError as error:
            raise damaged(self.directory, f"split {self._split}: {reason(error)}") from error

    def check(self, indices: Sequence[int]) -> None:
        """As `Source` has it."""
        for index in indices:
            (record,) = self.read([index])
            try:
                decode(tf.constant(record))
            except tf.errors.OpError as error:
                (name,) = self._field("name", [index])
                raise damaged(
                    self.directory,
                    f'example "{name.decode()}" of {self._split} cannot be decoded: '
                    f"{reason(error)}",
                ) from error

    def decoded(self, indices: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Examples at `indices`, in that order, decoded in parallel: `decode`'s, as NumPy.

        Raises:
            UserError: from the iterator, where an example is damaged.
        """
        examples = (
            tf.data.Dataset.from_tensor_slices(np.asarray(indices, np.int64))
            .batch(_READ_SIZE)
            .map(traced_as_written(self.fetch))
            .unbatch()
            .map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            .prefetch(4)
        )
        return explained(
            cast(Iterator[dict[str, Any]], examples.as_numpy_iterator()),
            # Those that are read at once fail at the first of them.
            lambda number: self.check(indices[number : number + _READ_SIZE]),
        )


def explained(
    items: Iterator[dict[str, Any]], check: Callable[[int], None]
) -> Iterator[dict[str, Any]]:
    """The items of a tf.data pipeline, whose errors do not say which example they are about.

    Args:
        items: of the pipeline, in a fixed order.
        check: called with the number of an item that could not be had; raises what is to be said.
    """
    for number in itertools.count():
        try:
            item = next(items)
        except StopIteration:
            return
        except tf.errors.OpError:
            check(number)
            raise
        yield item


def damaged(directory: pathlib.Path, what: str) -> UserError:
    """The error about a prepared set of which something is missing, cut or changed."""
    return UserError(f"{directory} is damaged ({what}); remove {directory} and prepare it again")


def _cannot_be_opened(file: str) -> bool:
    try:
        len(ArrayRecordDataSource([file]))
    except _UNREADABLE:
        return True
    return False


def _chunks(indices: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(indices), _READ_SIZE):
        yield indices[start : start + _READ_SIZE]


def _png_size(png: bytes) -> tuple[int, int]:
    """Height and width: the first chunk of a PNG file begins with both, after 16 bytes."""
    width, height = struct.unpack(">II", png[16:24])
    return height, width


@traced_as_written
def decode(record: tf.Tensor) -> dict[str, tf.Tensor]:
    """Decodes a serialized example: `image` uint8 `[H, W, 3]`, `label` uint8 `[H, W]`, `name`."""
    name, opened = _opened(record)
    everything = tf.zeros(2, tf.int32), tf.shape(opened.label)
    image = tiles.pixels(tiles.reader(opened)(*everything), *everything)
    return {"image": image, "label": opened.label, "name": name}


def _opened(record: tf.Tensor) -> tuple[tf.Tensor, Opened]:
    """The name of a serialized example, and the rest of it."""
    example = tf.io.parse_single_example(record, _SCHEMA)
    label = tf.io.decode_png(example["label"], channels=1)[..., 0]
    return example["name"], Opened(label, example["image"], tf.zeros([0, 0, 3], tf.uint8))
