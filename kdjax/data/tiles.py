"""Images as a file or as PNG tiles, and windows of them, decoded from the tiles they touch."""

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from kdjax.data._tensorflow import tf
from kdjax.data.builder import encode_png

# Decodes a window of an image: from `begin` to before `end`, each int32 `[2]`, a row and a column.
Read = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

# Height and width. Smaller tiles decode less beside the window, but cost more calls and more bytes.
TILE = (128, 256)


def encode(pixels: UInt8[np.ndarray, "H W 3"]) -> list[bytes]:
    """PNG tiles, row by row, all of one size: the last ones go on beyond the edge of the image."""
    rows, columns = (-(-size // tile) for size, tile in zip(pixels.shape, TILE, strict=False))
    if rows * columns == 1:
        return [encode_png(pixels)]
    (height, width), (h, w) = pixels.shape[:2], TILE
    pixels = np.pad(pixels, ((0, rows * h - height), (0, columns * w - width), (0, 0)), "edge")
    return [
        encode_png(pixels[row * h : (row + 1) * h, column * w : (column + 1) * w])
        for row in range(rows)
        for column in range(columns)
    ]


def cut(image: tf.Tensor, begin: tf.Tensor, end: tf.Tensor) -> tf.Tensor:
    """A window of pixels `[H, W, 3]`, as `Read` says."""
    return image[begin[0] : end[0], begin[1] : end[1]]


def decode(encoded: tf.Tensor, size: tf.Tensor, begin: tf.Tensor, end: tf.Tensor) -> tf.Tensor:
    """Decodes a window of an image.

    Args:
        encoded: one PNG or JPEG file, or the tiles of `encode`: strings `[n]`.
        size: height and width of the image, int32 `[2]`.
        begin: the window's first row and column, int32 `[2]`.
        end: the row and the column after its last.

    Returns:
        uint8 `[h, w, 3]`.
    """

    def from_whole() -> tf.Tensor:
        image = tf.io.decode_image(encoded[0], channels=3, expand_animations=False)
        return cut(tf.ensure_shape(image, [None, None, 3]), begin, end)

    window = tf.cond(
        tf.size(encoded) > 1, lambda: _from_tiles(encoded, size, begin, end), from_whole
    )
    return tf.ensure_shape(window, [None, None, 3])


def _from_tiles(tiles: tf.Tensor, size: tf.Tensor, begin: tf.Tensor, end: tf.Tensor) -> tf.Tensor:
    per_row = -(-size[1] // TILE[1])
    first, last = begin // TILE, (end - 1) // TILE
    numbers = tf.range(first[0], last[0] + 1)[:, None] * per_row + tf.range(first[1], last[1] + 1)
    decoded = tf.map_fn(
        lambda tile: tf.ensure_shape(tf.io.decode_png(tile, channels=3), [*TILE, 3]),
        tf.gather(tiles, tf.reshape(numbers, [-1])),
        fn_output_signature=tf.TensorSpec([*TILE, 3], tf.uint8),
    )
    rows, columns = tf.unstack(tf.shape(numbers))
    grid = tf.transpose(tf.reshape(decoded, [rows, columns, *TILE, 3]), [0, 2, 1, 3, 4])
    pixels = tf.reshape(grid, [rows * TILE[0], columns * TILE[1], 3])
    return cut(pixels, begin - first * TILE, end - first * TILE)
