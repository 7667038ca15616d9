"""The examples of a split as records: read by index, with images in one file or in tiles."""

import abc
import functools
import io
import itertools
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from jaxtyping import Int64, UInt8
from PIL import Image

from kdjax.data._tensorflow import reason, tf, traced_as_written
from kdjax.utils.bands import RGB, Bands
from kdjax.utils.errors import UserError

if TYPE_CHECKING:
    from kdjax.data.dataset import ExampleReader

# Height and width. Smaller tiles decode fewer pixels outside a crop, but cost calls and bytes.
TILE = (64, 256)
# Next to the records of a prepared set: the pixels of each class in each example, by split.
CLASS_COUNTS = "class_counts.npz"
_SCHEMA = {
    # A file or tiles: PNG or JPEG of photos, and compressed values of other bands.
    "image": tf.io.FixedLenSequenceFeature([], tf.string, allow_missing=True),
    "label": tf.io.FixedLenFeature([], tf.string),
    "name": tf.io.FixedLenFeature([], tf.string),
    # Height and width, if image and label hold plain pixels.
    "size": tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True),
}
_THREADS = 8  # read the examples of a user's source
_READ_SIZE = 32  # records per call when many are read in a row
# What array_record raises for files that are missing, cut, or changed.
_UNREADABLE = (OSError, RuntimeError, ValueError, IndexError)


class Window(NamedTuple):
    """A part of an image, in adjacent tiles.

    Attributes:
      tiles: `[n, h, w, C]`, row by row.
      per_row: the number of tiles in a row, int32.
      corner: row and column of the image where the first tile begins, int32 `[2]`.
    """

    tiles: tf.Tensor
    per_row: tf.Tensor
    corner: tf.Tensor


# Decodes a part of an image that covers the rows and columns from `begin` to before `end`, each
# int32 `[2]`.
WindowReader = Callable[[tf.Tensor, tf.Tensor], Window]


def encode_tiles(pixels: UInt8[np.ndarray, "H W 3"]) -> list[bytes]:
    """Returns PNG tiles of one size, row by row. The last ones extend beyond the image."""
    (height, width), (h, w) = pixels.shape[:2], TILE
    rows, columns = -(-height // h), -(-width // w)
    if rows * columns == 1:
        return [_encode_tile(pixels)]
    pixels = np.pad(pixels, ((0, rows * h - height), (0, columns * w - width), (0, 0)), "edge")
    return [
        _encode_tile(pixels[row * h : (row + 1) * h, column * w : (column + 1) * w])
        for row in range(rows)
        for column in range(columns)
    ]


def _encode_tile(pixels: UInt8[np.ndarray, "h w 3"]) -> bytes:
    buffer = io.BytesIO()
    # Photos hold runs but no long repetitions. Run-length encoding is six times as fast as zlib's
    # lower levels, and the files are no larger and decode faster.
    Image.fromarray(pixels).save(buffer, "png", compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def encode_bands(image: np.ndarray, *, tiled: bool) -> list[bytes]:
    """Returns the compressed values of an image `[H, W, C]`, whole or in tiles like `encode_tiles`.

    Tiles have the size `TILE`, unless there is one alone, which has the size of the image.
    """
    (height, width), (h, w) = image.shape[:2], TILE if tiled else image.shape[:2]
    rows, columns = -(-height // h), -(-width // w)
    if rows * columns > 1:
        image = np.pad(image, ((0, rows * h - height), (0, columns * w - width), (0, 0)), "edge")
    little = image.astype(image.dtype.newbyteorder("<"))
    return [
        zlib.compress(little[row * h : (row + 1) * h, column * w : (column + 1) * w].tobytes(), 1)
        for row in range(rows)
        for column in range(columns)
    ]


def whole_window(image: tf.Tensor) -> Window:
    """Returns an image `[H, W, C]` as one tile."""
    return Window(image[None], tf.constant(1), tf.zeros(2, tf.int32))


def decode_window(
    encoded: tf.Tensor, size: tf.Tensor, begin: tf.Tensor, end: tf.Tensor, bands: Bands = RGB
) -> Window:
    """Decodes a window of an image.

    Args:
      encoded: one PNG or JPEG file, or the tiles of `encode_tiles`; for other bands than those of
        photos, what `encode_bands` returns: strings `[n]`.
      size: height and width of the image, int32 `[2]`.
      begin: the first row and column of the window, int32 `[2]`.
      end: the row and the column after its last.
      bands: the bands of the image.
    """

    def decode(file: tf.Tensor, height: Any, width: Any) -> tf.Tensor:
        if bands == RGB:
            return tf.io.decode_image(file, channels=3, expand_animations=False)
        values = tf.io.decode_raw(tf.io.decode_compressed(file, "ZLIB"), bands.dtype)
        return tf.reshape(values, [height, width, bands.channels])

    def from_file() -> Window:
        image = decode(encoded[0], size[0], size[1])
        return whole_window(tf.ensure_shape(image, [None, None, bands.channels]))

    def from_tiles() -> Window:
        first, last = begin // TILE, (end - 1) // TILE
        rows, columns = tf.range(first[0], last[0] + 1), tf.range(first[1], last[1] + 1)
        numbers = rows[:, None] * -(-size[1] // TILE[1]) + columns
        decoded = tf.map_fn(
            lambda tile: tf.ensure_shape(decode(tile, *TILE), [*TILE, bands.channels]),
            tf.gather(encoded, tf.reshape(numbers, [-1])),
            fn_output_signature=tf.TensorSpec([*TILE, bands.channels], bands.dtype),
        )
        return Window(decoded, tf.size(columns), first * TILE)

    window = tf.cond(tf.size(encoded) > 1, from_tiles, from_file)
    return window._replace(tiles=tf.ensure_shape(window.tiles, [None, None, None, bands.channels]))


def pixels(window: Window, begin: tf.Tensor, end: tf.Tensor) -> tf.Tensor:
    """Returns the pixels from `begin` to before `end` of a window, `[h, w, C]`."""
    count, height, width, _ = tf.unstack(tf.shape(window.tiles))
    channels = window.tiles.shape[-1]
    grid = [count // window.per_row, window.per_row, height, width * channels]
    joined = tf.transpose(tf.reshape(window.tiles, grid), [0, 2, 1, 3])
    image = tf.reshape(joined, [grid[0] * height, grid[1] * width, channels])
    begin, end = begin - window.corner, end - window.corner
    return image[begin[0] : end[0], begin[1] : end[1]]


class Records(abc.ABC):
    """The examples of one split by index. Several threads may read them at once.

    Attributes:
      bands: the bands of the images.
    """

    def __init__(self, bands: Bands) -> None:
        self.bands = bands
        self._sizes: dict[int, tuple[int, int]] = {}

    @abc.abstractmethod
    def __len__(self) -> int:
        """The number of examples."""

    @abc.abstractmethod
    def read_serialized(self, indices: Sequence[int]) -> list[bytes]:
        """Returns the records at `indices`, or raises a `UserError` if one cannot be read."""

    @abc.abstractmethod
    def error(self, what: str) -> UserError:
        """Returns the error for records that cannot be read."""

    def names(self) -> list[str]:
        """Returns the names of all examples without decoding their images."""
        names = [self._fields(chunk, "name")["name"] for chunk in _chunks(range(len(self)))]
        return [name.decode() for name in itertools.chain.from_iterable(names)]

    def sizes(self, indices: Sequence[int]) -> list[tuple[int, int]]:
        """Returns height and width of examples without decoding them."""
        unknown = sorted(set(indices) - self._sizes.keys())
        for chunk in _chunks(unknown):
            fields = self._fields(chunk, "label", "size")
            for index, png, size in zip(chunk, fields["label"], fields["size"], strict=True):
                width, height = size[::-1] if len(size) else struct.unpack(">II", png[16:24])
                self._sizes[index] = int(height), int(width)
        return [self._sizes[index] for index in indices]

    def class_counts(self, num_classes: int) -> Int64[np.ndarray, "N K"]:
        """Counts the pixels of each class in every example. Decodes all labels.

        Args:
          num_classes: K.
        """

        def count(label: bytes, size: np.ndarray) -> np.ndarray:
            if len(size):
                values = np.frombuffer(label, np.uint8)
            else:
                with Image.open(io.BytesIO(label)) as picture:
                    values = np.asarray(picture).ravel()
            return np.bincount(values, minlength=num_classes)[:num_classes]

        counts = np.zeros((len(self), num_classes), np.int64)
        with ThreadPoolExecutor(_THREADS) as pool:
            for chunk in _chunks(range(len(self))):
                fields = self._fields(chunk, "label", "size")
                try:
                    counts[list(chunk)] = [*pool.map(count, fields["label"], fields["size"])]
                except OSError as error:
                    raise self.error(f"a label cannot be decoded: {error}") from error
        return counts

    def _fields(self, indices: Sequence[int], *keys: str) -> dict[str, np.ndarray]:
        records = self.read_serialized(indices)
        try:
            examples = tf.io.parse_example(records, {key: _SCHEMA[key] for key in keys})
        except tf.errors.OpError as error:
            raise self.error(reason(error)) from error
        return {key: value.numpy() for key, value in examples.items()}

    def check(self, index: int) -> None:
        """Decodes an example, and raises a `UserError` if it is damaged."""
        (record,) = self.read_serialized([index])
        try:
            decode_example(tf.constant(record), self.bands)
        except tf.errors.OpError as error:
            (name,) = self._fields([index], "name")["name"]
            what = f'example "{name.decode()}" cannot be decoded: {reason(error)}'
            raise self.error(what) from error

    def decoded(self, indices: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Yields examples in the order of `indices`, decoded in parallel, as NumPy.

        Yields:
          `image`, `[H, W, C]`, uint8 `[H, W, 3]` for photos; `label`, uint8 `[H, W]`; `name`,
          bytes.
        """

        def read(indices: tf.Tensor) -> tf.Tensor:
            records = tf.numpy_function(
                lambda indices: np.array(self.read_serialized(indices.tolist()), object),
                [indices],
                tf.string,
            )
            return tf.ensure_shape(records, [None])

        def check(number: int) -> None:
            # All records that are read in one call fail at the first of them.
            for index in indices[number : number + _READ_SIZE]:
                self.check(index)

        examples = (
            tf.data.Dataset.from_tensor_slices(np.asarray(indices, np.int64))
            .batch(_READ_SIZE)
            .map(traced_as_written(read))
            .unbatch()
            .map(_decoder(self.bands), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            .prefetch(4)
        )
        return explained(cast(Iterator[dict[str, Any]], examples.as_numpy_iterator()), check)


class FileRecords(Records):
    """The records in array_record files.

    Attributes:
      directory: the folder of the set.
    """

    def __init__(self, files: Sequence[str], length: int, split: str, bands: Bands = RGB):
        """Opens the `files` of `split`, which together hold `length` records."""
        super().__init__(bands)
        self.directory = pathlib.Path(files[0]).parent
        self._split = split
        try:
            self._source = ArrayRecordDataSource(list(files))
            found = len(self._source)
        except _UNREADABLE as error:
            path = pathlib.Path(next(filter(_cannot_be_opened, files), files[0]))
            what = f": {reason(error)}" if path.is_file() else " is missing"
            raise damaged(self.directory, f"{path.name}{what}") from error
        if found != length:
            raise self.error(f"it holds {found} records instead of {length}")

    def class_counts(self, num_classes: int) -> Int64[np.ndarray, "N K"]:
        """Returns the counts that `prepare` wrote; counts again if an older version prepared."""
        path = self.directory / CLASS_COUNTS
        if not path.exists():
            return super().class_counts(num_classes)
        try:
            with np.load(path) as stored:
                counts = stored[f"pixels {self._split}"]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise self.error(f"{CLASS_COUNTS}: {error}") from error
        if counts.shape != (len(self), num_classes):
            raise self.error(f"{CLASS_COUNTS} holds counts of shape {counts.shape}")
        return counts

    def error(self, what: str) -> UserError:
        """Returns the error for a damaged set."""
        return damaged(self.directory, f"split {self._split}: {what}")

    def __len__(self) -> int:
        return len(self._source)

    def read_serialized(self, indices: Sequence[int]) -> list[bytes]:
        """Returns the records at `indices`, or raises a `UserError` if one is damaged."""
        try:
            return list(self._source.__getitems__(indices))
        except _UNREADABLE as error:
            raise self.error(reason(error)) from error


class SourceRecords(Records):
    """Records of plain pixels, made from the examples of a user's source when they are read."""

    def __init__(self, reader: "ExampleReader"):
        super().__init__(reader.bands)
        self._reader = reader

    def error(self, what: str) -> UserError:
        """Returns the error for an example."""
        return UserError(f"{self._reader.where}: {what}")

    def __len__(self) -> int:
        return len(self._reader)

    def read_serialized(self, indices: Sequence[int]) -> list[bytes]:
        """Reads the examples at `indices` in parallel."""
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(self._read, indices))

    def _read(self, index: int) -> bytes:
        example = self._reader(index)
        values = {key: _bytes(np.asarray(example[key]).tobytes()) for key in ("image", "label")}
        size = tf.train.Int64List(value=example["label"].shape)
        values |= {"name": _bytes(example["name"]), "size": tf.train.Feature(int64_list=size)}
        return tf.train.Example(features=tf.train.Features(feature=values)).SerializeToString()

    def names(self) -> list[str]:
        """Returns the names of all examples. Reads all of them if they have names."""
        return super().names() if self._reader.has_names else [str(i) for i in range(len(self))]


def _bytes(value: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def explained(
    items: Iterator[dict[str, Any]], check: Callable[[int], None]
) -> Iterator[dict[str, Any]]:
    """Yields the items of a tf.data pipeline, whose errors do not name the example.

    Args:
      items: the items, in a fixed order.
      check: takes the number of the item that failed, and raises an error that names the example.
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
    """Returns the error for a prepared set in which something is missing, cut, or changed."""
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


@traced_as_written
def decode_example(record: tf.Tensor, bands: Bands) -> dict[str, tf.Tensor]:
    """Decodes a serialized example: `image` `[H, W, C]`, `label` uint8 `[H, W]`, `name`."""
    name, label, read_window = open_example(record, bands)
    ends = tf.zeros(2, tf.int32), tf.shape(label)
    return {"image": pixels(read_window(*ends), *ends), "label": label, "name": name}


def open_example(record: tf.Tensor, bands: Bands) -> tuple[tf.Tensor, tf.Tensor, WindowReader]:
    """Returns name and label of a serialized example, and a reader of windows of its image."""
    example = tf.io.parse_single_example(record, _SCHEMA)
    plain = tf.size(example["size"]) > 0
    size = tf.cast(example["size"], tf.int32)
    label = tf.cond(
        plain,
        lambda: tf.reshape(tf.io.decode_raw(example["label"], tf.uint8), size),
        lambda: tf.io.decode_png(example["label"], channels=1)[..., 0],
    )
    label = tf.ensure_shape(label, [None, None])

    def read_window(begin: tf.Tensor, end: tf.Tensor) -> Window:
        def from_pixels() -> Window:
            image = tf.io.decode_raw(example["image"][0], bands.dtype)
            return whole_window(tf.reshape(image, tf.concat([size, [bands.channels]], 0)))

        def encoded() -> Window:
            return decode_window(example["image"], tf.shape(label), begin, end, bands)

        window = tf.cond(plain, from_pixels, encoded)
        tiles = tf.ensure_shape(window.tiles, [None, None, None, bands.channels])
        return window._replace(tiles=tiles)

    return example["name"], label, read_window


# Traced once and not by every pipeline, because a run reads its validation split many times.
@functools.cache
def _decoder(bands: Bands) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    return tf.function(
        lambda record: decode_example(record, bands),
        input_signature=[tf.TensorSpec([], tf.string)],
        autograph=False,
    )
