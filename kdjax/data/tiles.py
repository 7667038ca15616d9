"""Images as a file or as PNG tiles, and windows of them, decoded from the tiles they touch."""

import io
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from kdjax.data._tensorflow import tf
from kdjax.data.interface import Opened

# Height and width. Smaller tiles decode less beside the window, but cost more calls and more bytes.
TILE = (64, 256)


class Window(NamedTuple):
    """A part of an image, in tiles that lie side by side.

    Attributes:
        tiles: uint8 `[n, h, w, 3]`, row by row.
        per_row: how many tiles lie in a row, int32.
        corner: row and column of the image at which the first tile begins, int32 `[2]`.
    """

    tiles: tf.Tensor
    per_row: tf.Tensor
    corner: tf.Tensor


# Decodes a part of an image that holds all from `begin` to before `end`, each int32 `[2]`, a row
# and a column.
Read = Callable[[tf.Tensor, tf.Tensor], Window]


def whole(image: tf.Tensor) -> Window:
    """An image `[H, W, 3]` in one tile."""
    return Window(image[None], tf.constant(1), tf.zeros(2, tf.int32))


def encode(pixels: UInt8[np.ndarray, "H W 3"]) -> list[bytes]:
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


def reader(opened: Opened) -> Read:
    """What decodes a window of the image of an example."""

    def decoded(begin: tf.Tensor, end: tf.Tensor) -> Window:
        del begin, end
        return whole(opened.pixels)

    def encoded(begin: tf.Tensor, end: tf.Tensor) -> Window:
        return decode(opened.encoded, tf.shape(opened.label), begin, end)

    def either(begin: tf.Tensor, end: tf.Tensor) -> Window:
        is_encoded = tf.size(opened.encoded) > 0
        ends = begin, end
        window = tf.cond(is_encoded, lambda: encoded(*ends), lambda: decoded(*ends))
        return window._replace(tiles=tf.ensure_shape(window.tiles, [None, None, None, 3]))

    # Only in a mixture of both is it not known beforehand.
    if opened.encoded.shape[0] == 0:
        return decoded
    return encoded if opened.pixels.shape[0] == 0 else either


def decode(encoded: tf.Tensor, size: tf.Tensor, begin: tf.Tensor, end: tf.Tensor) -> Window:
    """Decodes a window of an image.

    Args:
        encoded: one PNG or JPEG file, or the tiles of `encode`: strings `[n]`.
        size: height and width of the image, int32 `[2]`.
        begin: the window's first row and column, int32 `[2]`.
        end: the row and the column after its last.
    """

    def from_file() -> Window:
        image = tf.io.decode_image(encoded[0], channels=3, expand_animations=False)
        return whole(tf.ensure_shape(image, [None, None, 3]))

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
