"""Examples in files of records: found by index, their images whole or in tiles."""

import io
import itertools
import pathlib
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from jaxtyping import UInt8
from PIL import Image

from kdjax.data._tensorflow import reason, tf, traced_as_written
from kdjax.data.interface import Opened, Window, WindowReader
from kdjax.utils.errors import UserError

# Height and width. Smaller tiles decode less beside the window, but cost more calls and more bytes.
TILE = (64, 256)


def whole_window(image: tf.Tensor) -> Window:
    """An image `[H, W, 3]` in one tile."""
    return Window(image[None], tf.constant(1), tf.zeros(2, tf.int32))


def encode_tiles(pixels: UInt8[np.ndarray, "H W 3"]) -> list[bytes]:
    """PNG tiles, row by row, all of one size: the last ones go on beyond the edge of the image."""
    rows, columns = (-(-size // tile) for size, tile in zip(pixels.shape, TILE, strict=False))
    if rows * columns == 1:
        return [_encode_tile(pixels)]
    (height, width), (h, w) = pixels.shape[:2], TILE
    pixels = np.pad(pixels, ((0, rows * h - height), (0, columns * w - width), (0, 0)), "edge")
    return [
        _encode_tile(pixels[row * h : (row + 1) * h, column * w : (column + 1) * w])
        for row in range(rows)
        for column in range(columns)
    ]


def _encode_tile(pixels: UInt8[np.ndarray, "h w 3"]) -> bytes:
    buffer = io.BytesIO()
    # Photographs hold no long repetitions but runs. Not looking for them is six times as fast, and
    # the files are no larger, and decode faster, than those of zlib's lower levels.
    Image.fromarray(pixels).save(buffer, "png", compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def window_reader(opened: Opened) -> WindowReader:
    """What decodes a window of the image of an example."""

    def decoded(begin: tf.Tensor, end: tf.Tensor) -> Window:
        del begin, end
        return whole_window(opened.pixels)

    def encoded(begin: tf.Tensor, end: tf.Tensor) -> Window:
        return decode_window(opened.encoded, tf.shape(opened.label), begin, end)

    def either(begin: tf.Tensor, end: tf.Tensor) -> Window:
        is_encoded = tf.size(opened.encoded) > 0
        ends = begin, end
        window = tf.cond(is_encoded, lambda: encoded(*ends), lambda: decoded(*ends))
        return window._replace(tiles=tf.ensure_shape(window.tiles, [None, None, None, 3]))

    # Only in a mixture of both is it not known beforehand.
    if opened.encoded.shape[0] == 0:
        return decoded
    return encoded if opened.pixels.shape[0] == 0 else either


def decode_window(encoded: tf.Tensor, size: tf.Tensor, begin: tf.Tensor, end: tf.Tensor) -> Window:
    """Decodes a window of an image.

    Args:
      encoded: one PNG or JPEG file, or the tiles of `encode_tiles`: strings `[n]`.
      size: height and width of the image, int32 `[2]`.
      begin: the window's first row and column, int32 `[2]`.
      end: the row and the column after its last.
    """

    def from_file() -> Window:
        image = tf.io.decode_image(encoded[0], channels=3, expand_animations=False)
        return whole_window(tf.ensure_shape(image, [None, None, 3]))

    window = tf.cond(
        tf.size(encoded) > 1, lambda: _from_tiles(encoded, size, begin, end), from_file
    )
    return window._replace(tiles=tf.ensure_shape(window.tiles, [None, None, None, 3]))


def _from_tiles(tiles: tf.Tensor, size: tf.Tensor, begin: tf.Tensor, end: tf.Tensor) -> Window:
    first, last = begin // TILE, (end - 1) // TILE
    rows, columns = tf.range(first[0], last[0] + 1), tf.range(first[1], last[1] + 1)
    numbers = rows[:, None] * -(-size[1] // TILE[1]) + columns
    decoded = tf.map_fn(
        lambda tile: tf.ensure_shape(tf.io.decode_png(tile, channels=3), [*TILE, 3]),
        tf.gather(tiles, tf.reshape(numbers, [-1])),
        fn_output_signature=tf.TensorSpec([*TILE, 3], tf.uint8),
    )
    return Window(decoded, tf.size(columns), first * TILE)


def pixels(window: Window, begin: tf.Tensor, end: tf.Tensor) -> tf.Tensor:
    """What lies from `begin` to before `end`, as decoded: uint8 `[h, w, 3]`."""
    count, height, width, _ = tf.unstack(tf.shape(window.tiles))
    grid = [count // window.per_row, window.per_row, height, width * 3]
    joined = tf.transpose(tf.reshape(window.tiles, grid), [0, 2, 1, 3])
    image = tf.reshape(joined, [grid[0] * height, grid[1] * width, 3])
    begin, end = begin - window.corner, end - window.corner
    return image[begin[0] : end[0], begin[1] : end[1]]


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

    def read_serialized(self, indices: Sequence[int]) -> list[bytes]:
        """The records at `indices`, in that order.

        Raises:
          UserError: one of them is damaged.
        """
        try:
            return list(self._source.__getitems__(indices))
        except _UNREADABLE as error:
            raise damaged(self.directory, f"split {self._split}: {reason(error)}") from error

    def fetch(self, indices: tf.Tensor) -> tf.Tensor:
        """As `read_serialized`, from within a graph: int64 `[B]` to strings `[B]`."""

        def read(indices: np.ndarray) -> np.ndarray:
            return np.array(self.read_serialized(indices.tolist()), object)

        return tf.ensure_shape(tf.numpy_function(read, [indices], tf.string), [None])

    def decode(self, fetched: tf.Tensor) -> tuple[tf.Tensor, WindowReader]:
        """As `Source` has it."""
        _, opened = _opened(fetched)
        return opened.label, window_reader(opened)

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
            return list(
                tf.io.parse_example(self.read_serialized(indices), {key: _SCHEMA[key]})[key].numpy()
            )
        except tf.errors.OpError as error:
            raise damaged(self.directory, f"split {self._split}: {reason(error)}") from error

    def check(self, indices: Sequence[int]) -> None:
        """As `Source` has it."""
        for index in indices:
            (record,) = self.read_serialized([index])
            try:
                decode_example(tf.constant(record))
            except tf.errors.OpError as error:
                (name,) = self._field("name", [index])
                raise damaged(
                    self.directory,
                    f'example "{name.decode()}" of {self._split} cannot be decoded: '
                    f"{reason(error)}",
                ) from error

    def decoded(self, indices: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Examples at `indices`, in that order, decoded in parallel: `decode_example`'s, as NumPy.

        Raises:
          UserError: from the iterator, where an example is damaged.
        """
        examples = (
            tf.data.Dataset.from_tensor_slices(np.asarray(indices, np.int64))
            .batch(_READ_SIZE)
            .map(traced_as_written(self.fetch))
            .unbatch()
            .map(_decode_example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
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
def decode_example(record: tf.Tensor) -> dict[str, tf.Tensor]:
    """Decodes a serialized example: `image` uint8 `[H, W, 3]`, `label` uint8 `[H, W]`, `name`."""
    name, opened = _opened(record)
    everything = tf.zeros(2, tf.int32), tf.shape(opened.label)
    image = pixels(window_reader(opened)(*everything), *everything)
    return {"image": image, "label": opened.label, "name": name}


# Traced once, not by every pipeline: a run reads its validation split many times.
_decode_example = tf.function(
    decode_example, input_signature=[tf.TensorSpec([], tf.string)], autograph=False
)


def _opened(record: tf.Tensor) -> tuple[tf.Tensor, Opened]:
    """The name of a serialized example, and the rest of it."""
    example = tf.io.parse_single_example(record, _SCHEMA)
    label = tf.io.decode_png(example["label"], channels=1)[..., 0]
    return example["name"], Opened(label, example["image"], tf.zeros([0, 0, 3], tf.uint8))
