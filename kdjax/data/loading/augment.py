"""Augments one example in tf.data, as a pure function of its random numbers.

XLA computes the pixels: it does in one pass what TensorFlow does in ten. It compiles for each
shape. Crops have one shape, and the examples are padded to few shapes.
"""

import functools
from typing import NamedTuple

from kdjax.data._tensorflow import tf
from kdjax.data.loading.records import Window, WindowReader
from kdjax.data.loading.sampling import (
    CROP_TRIES,
    WEIGHT_BITS,
    AugmentOptions,
    Draws,
)
from kdjax.utils.classes import IGNORE_LABEL

_compiled = functools.partial(tf.function, jit_compile=True, autograph=False)


class _Crop(NamedTuple):
    """A crop of a scaled example.

    Attributes:
      size: height and width of the example, int32 `[2]`.
      scaled: height and width after scaling.
      corner: row and column of the crop in the scaled example.
      mirrored: whether the crop is mirrored left to right.
    """

    size: tf.Tensor
    scaled: tf.Tensor
    corner: tf.Tensor
    mirrored: tf.Tensor


def augment(
    read_window: WindowReader, label: tf.Tensor, draws: Draws, options: AugmentOptions
) -> dict[str, tf.Tensor]:
    """Scales, crops, flips and distorts one example, inside a `tf.function`.

    The result is the same as scaling the whole image bilinearly and the whole label to the nearest
    pixel, and then cropping. But only the pixels of the crop are computed, and only the tiles that
    the crop touches are decoded.

    Args:
      read_window: decodes a window of the image. Called once.
      label: uint8 `[H, W]`.
      draws: the random numbers of the example, without an axis `[B]`.
      options: the augmentations.

    Returns:
      `image`, uint8 `[h, w, 3]`, padded with `options.bands.padding`, or `[h, w, C]` for other
      bands than those of photos, float32 if they have more than 8 bits; `label`, uint8 `[h, w]`,
      padded with 255. With `options.clean_view` also `clean`, the image before its colors are
      distorted. With `options.place` also `place`, int32 `[5]`: height and width of the scaled
      image, row and column of the crop's corner in it, and 1 if the crop is mirrored, else 0.
    """
    size = tf.shape(label)
    scaled = _scaled_size(size, draws.scale, options)
    low, high = tf.zeros(2, tf.int32), tf.maximum(scaled - options.crop_size, 0)
    if options.class_uniform:
        low, high = _around_class(label, scaled, high, draws, options)
    room = high - low + 1
    corners = low + tf.minimum(
        tf.cast(draws.corners * tf.cast(room, tf.float32), tf.int32),
        room - 1,  # a number just below 1 may be rounded to it
    )
    crop, crop_label = _first_varied(label, scaled, corners, draws.mirrored, options)
    ends = tf.stack([crop.corner, tf.minimum(crop.corner + options.crop_size, scaled) - 1])
    low, high, _ = _neighbors(size, scaled, ends)
    window = read_window(low[0], high[1] + 1)
    clean = _sample_image(window, crop, options.crop_size, options.bands.channels)
    images = {"image": distort(clean, draws) if options.distorts else clean}
    if options.clean_view:
        images["clean"] = clean
    covered = scaled - crop.corner
    images = tf.cond(
        tf.reduce_any(covered < options.crop_size),
        lambda: {
            key: _padded(image, covered, options.crop_size, options.bands.padding)
            for key, image in images.items()
        },
        lambda: images,
    )
    result = {**images, "label": crop_label}
    if options.place:
        mirrored = tf.cast(draws.mirrored, tf.int32)[None]
        result["place"] = tf.concat([scaled, crop.corner, mirrored], 0)
    return result


def _scaled_size(size: tf.Tensor, scale: tf.Tensor, options: AugmentOptions) -> tf.Tensor:
    """Returns height and width after scaling. Divides sizes in integers."""
    if not options.base_size:
        scaled = tf.cast(tf.round(tf.cast(size, tf.float32) * scale), tf.int32)
        return tf.maximum(scaled, 1)
    size = tf.cast(size, tf.int64)  # for the products of the sides of very wide images
    long, short = tf.reduce_max(size), tf.reduce_min(size)
    to_long, to_short = (
        tf.maximum(tf.cast(side * scale, tf.int64), 1) for side in options.base_size
    )
    long_binds = to_long * short < to_short * long
    target, side = tf.where(long_binds, to_long, to_short), tf.where(long_binds, long, short)
    return tf.cast(tf.maximum((2 * size * target + side) // (2 * side), 1), tf.int32)


def _around_class(
    label: tf.Tensor,
    scaled: tf.Tensor,
    last: tf.Tensor,
    draws: Draws,
    options: AugmentOptions,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the first and the last corner of crops that show a pixel of the wanted class.

    All corners up to `last` if the label has no such pixel.
    """
    size = tf.shape(label)
    pixels = tf.where(tf.equal(tf.cast(label, tf.int32), draws.wanted))
    count = tf.shape(pixels)[0]

    def around() -> tuple[tf.Tensor, tf.Tensor]:
        place = tf.cast(draws.anchor * tf.cast(count, tf.float32), tf.int32)
        pixel = tf.cast(pixels[tf.minimum(place, count - 1)], tf.int64)
        wide = tf.cast(scaled, tf.int64)
        target = tf.cast((2 * pixel + 1) * wide // (2 * tf.cast(size, tf.int64)), tf.int32)
        low = tf.maximum(target - options.crop_size + 1, 0)
        return tf.minimum(low, last), tf.minimum(target, last)

    return tf.cond(count > 0, around, lambda: (tf.zeros(2, tf.int32), last))


def _first_varied(
    label: tf.Tensor,
    scaled: tf.Tensor,
    corners: tf.Tensor,
    mirrored: tf.Tensor,
    options: AugmentOptions,
) -> tuple[_Crop, tf.Tensor]:
    """Returns the first crop that no class fills, or else the last, and its label."""
    pixels = _filled_up(label)

    def crop_at(index: tf.Tensor) -> _Crop:
        return _Crop(tf.shape(label), scaled, corners[index], mirrored)

    def label_at(index: tf.Tensor) -> tf.Tensor:
        return _sample_label(pixels, crop_at(index), options.crop_size)

    def filled(crop_label: tf.Tensor) -> tf.Tensor:
        # Ignored pixels are beyond the bins, so they are not counted.
        counts = tf.raw_ops.DenseBincount(
            input=tf.cast(tf.reshape(crop_label, [-1]), tf.int32),
            size=IGNORE_LABEL,
            weights=tf.constant([], tf.float32),
        )
        return tf.reduce_max(counts) >= options.max_class_share * tf.reduce_sum(counts)

    first = tf.constant(0)
    if options.max_class_share >= 1:
        return crop_at(first), label_at(first)
    index, crop_label = tf.while_loop(
        lambda index, crop_label: (index < CROP_TRIES) & filled(crop_label),
        lambda index, crop_label: (index + 1, label_at(index + 1)),
        (first, label_at(first)),
    )
    return crop_at(index), crop_label


def _filled_up(pixels: tf.Tensor) -> tf.Tensor:
    """Flattens an array and appends zeros up to a power of two, so that few lengths occur."""
    size = tf.size(pixels)
    lengths = tf.constant([1 << bits for bits in range(31)])
    missing = lengths[tf.searchsorted(lengths, size[None])[0]] - size
    return tf.concat([tf.reshape(pixels, [-1]), tf.zeros([missing], pixels.dtype)], 0)


def _targets(crop: _Crop, crop_size: tuple[int, int]) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the rows and columns of the scaled example that a crop shows.

    Rows and columns beyond the example repeat its last ones. A mirrored crop takes its columns from
    the right, which costs nothing, unlike reversing the pixels.
    """
    last = tf.minimum(crop.corner + crop_size, crop.scaled) - 1
    rows, columns = (tf.minimum(crop.corner[a] + tf.range(crop_size[a]), last[a]) for a in (0, 1))
    return rows, tf.where(crop.mirrored, last[1] + crop.corner[1] - columns, columns)


def _sample_label(pixels: tf.Tensor, crop: _Crop, crop_size: tuple[int, int]) -> tf.Tensor:
    """Returns a crop of the scaled label, padded with 255.

    Each pixel takes the label under its center: floor((i + 1/2) * source / scaled), computed in
    integers. This is the nearest neighbor of the point where `_sample_image` interpolates.
    """
    rows, columns = _label_places(crop, crop_size)
    return _gather_label(pixels, rows, columns, crop.scaled - crop.corner, crop_size)


# Places are compiled apart from the gathering. In one program, XLA would repeat the divisions for
# each pixel.
@_compiled
def _label_places(crop: _Crop, crop_size: tuple[int, int]) -> tuple[tf.Tensor, tf.Tensor]:
    rows, columns = (
        tf.cast(
            _center(target, crop.size[axis]) // tf.cast(2 * crop.scaled[axis], tf.int64), tf.int32
        )
        for axis, target in enumerate(_targets(crop, crop_size))
    )
    return rows * crop.size[1], columns


@_compiled
def _gather_label(
    pixels: tf.Tensor,
    rows: tf.Tensor,
    columns: tf.Tensor,
    covered: tf.Tensor,
    crop_size: tuple[int, int],
) -> tf.Tensor:
    crop = tf.gather(pixels, rows[:, None] + columns)
    return tf.where(_inside(covered, crop_size), crop, tf.constant(IGNORE_LABEL, tf.uint8))


def _sample_image(
    window: Window, crop: _Crop, crop_size: tuple[int, int], channels: int
) -> tf.Tensor:
    """Returns a crop of the bilinearly scaled image.

    Pixel i lies at (i + 1/2) * source / scaled - 1/2 of the source, without antialiasing. Pixels of
    8 bits are computed in integers, all others in float32.
    """
    layout = tf.shape(window.tiles)[1:3], window.per_row, window.corner
    places = _image_places(layout, crop, crop_size, channels)
    return _interpolate(_filled_up(window.tiles), *places, channels=channels)


@_compiled
def _image_places(
    layout: tuple[tf.Tensor, tf.Tensor, tf.Tensor],
    crop: _Crop,
    crop_size: tuple[int, int],
    channels: int,
) -> tuple[tf.Tensor, ...]:
    """Returns, for both axes, the offsets of two neighbors of each target, and their weight."""
    tile, per_row, window_corner = layout
    rows, columns = _targets(crop, crop_size)
    top, bottom, down = _neighbors(crop.size[0], crop.scaled[0], rows)
    left, right, across = _neighbors(crop.size[1], crop.scaled[1], columns)
    tile_size = tile[0] * tile[1] * channels

    def down_to(row: tf.Tensor) -> tf.Tensor:
        row -= window_corner[0]
        inside = tf.math.floormod(row, tile[0]) * tile[1] * channels
        return row // tile[0] * per_row * tile_size + inside

    def across_to(column: tf.Tensor) -> tf.Tensor:
        column -= window_corner[1]
        return column // tile[1] * tile_size + tf.math.floormod(column, tile[1]) * channels

    return down_to(top), down_to(bottom), down, across_to(left), across_to(right), across


@_compiled
def _interpolate(
    pixels: tf.Tensor,
    top: tf.Tensor,
    bottom: tf.Tensor,
    down: tf.Tensor,
    left: tf.Tensor,
    right: tf.Tensor,
    across: tf.Tensor,
    channels: int,
) -> tf.Tensor:
    integers = pixels.dtype == tf.uint8

    def at(row: tf.Tensor, column: tf.Tensor) -> tf.Tensor:
        places = row[:, None, None] + (column[:, None] + tf.range(channels))
        return tf.cast(tf.gather(pixels, places), tf.int32 if integers else tf.float32)

    def blend(low: tf.Tensor, high: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
        if integers:
            return low * (1 << WEIGHT_BITS) + (high - low) * weight
        return low + (high - low) * (tf.cast(weight, tf.float32) / (1 << WEIGHT_BITS))

    blended = blend(
        blend(at(top, left), at(bottom, left), down[:, None, None]),
        blend(at(top, right), at(bottom, right), down[:, None, None]),
        across[:, None],
    )
    if not integers:
        return blended
    half = 1 << (2 * WEIGHT_BITS - 1)
    return tf.cast(tf.bitwise.right_shift(blended + half, 2 * WEIGHT_BITS), tf.uint8)


def _neighbors(
    size: tf.Tensor, scaled: tf.Tensor, target: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the two source pixels around each scaled pixel `target`, and the weight of one."""
    wide = tf.cast(scaled, tf.int64)
    place = _center(target, size) - wide  # in units of 1 / (2 * scaled)
    low = place // (2 * wide)
    part = place - low * 2 * wide
    weight = tf.cast((part * (1 << WEIGHT_BITS) + wide) // (2 * wide), tf.int32)
    low = tf.cast(low, tf.int32)
    return tf.maximum(low, 0), tf.minimum(low + 1, size - 1), weight


def _center(target: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Returns the center of a scaled pixel on an axis of `size`, in units of 1 / (2 * scaled).

    In 64 bits, because sides of 23,170 pixels exceed 32 bits at a scale of 2.
    """
    return (2 * tf.cast(target, tf.int64) + 1) * tf.cast(size, tf.int64)


def _inside(covered: tf.Tensor, crop_size: tuple[int, int]) -> tf.Tensor:
    """Returns True for the rows and columns of a crop that the example covers."""
    rows, columns = (tf.range(crop_size[axis]) < covered[axis] for axis in (0, 1))
    return rows[:, None] & columns


@_compiled
def _padded(
    image: tf.Tensor,
    covered: tf.Tensor,
    crop_size: tuple[int, int],
    padding: tuple[float, ...],
) -> tf.Tensor:
    inside = tf.expand_dims(_inside(covered, crop_size), -1)
    return tf.where(inside, image, tf.constant(padding, image.dtype))


def distort(image: tf.Tensor, draws: Draws) -> tf.Tensor:
    """Distorts colors as mmsegmentation does, but rounds once at the end: uint8 `[h, w, 3]`."""
    tinted = tf.not_equal(draws.saturation, 1) | tf.not_equal(draws.hue, 0)
    shaded = tf.not_equal(draws.contrast, 1) | tf.not_equal(draws.brightness, 0)
    return tf.switch_case(
        tf.where(tinted, 2, tf.cast(shaded, tf.int32)),
        [
            lambda: image,
            lambda: _distort(image, draws, tinted=False),
            lambda: _distort(image, draws, tinted=True),
        ],
    )


@_compiled
def _distort(image: tf.Tensor, draws: Draws, tinted: bool) -> tf.Tensor:
    def contrast(planes: tf.Tensor, wanted: tf.Tensor) -> tf.Tensor:
        return tf.where(wanted, tf.clip_by_value(planes * draws.contrast, 0, 255), planes)

    planes = tf.cast(tf.transpose(image, [2, 0, 1]), tf.float32)
    planes = tf.clip_by_value(planes + draws.brightness, 0, 255)
    contrasted = tf.not_equal(draws.contrast, 1)
    planes = contrast(planes, contrasted & draws.contrast_first)
    if tinted:
        planes = _tint(planes, draws)
    planes = contrast(planes, contrasted & tf.logical_not(draws.contrast_first))
    return tf.cast(tf.transpose(tf.round(planes), [1, 2, 0]), tf.uint8)


def _tint(planes: tf.Tensor, draws: Draws) -> tf.Tensor:
    """Turns the hue of HSV, and scales its saturation, at most to 1. The value stays.

    A plane is `value - chroma * clip(min(k, 4 - k), 0, 1)` with `k = (n + hue) mod 6`, with the hue
    in sixths of its circle and n = 5, 3, 1 for red, green, blue. Everything here is multiplied by
    the chroma, which may be 0.
    """
    red, green, blue = tf.unstack(planes)
    value = tf.maximum(tf.maximum(red, green), blue)
    chroma = value - tf.minimum(tf.minimum(red, green), blue)
    hue = tf.where(
        value == red,
        green - blue,
        tf.where(value == green, blue - red + 2 * chroma, red - green + 4 * chroma),
    )
    hue += 6 * draws.hue * chroma
    hue = tf.where(hue < 0, hue + 6 * chroma, hue)
    k = tf.constant([5.0, 3.0, 1.0])[:, None, None] * chroma + hue
    k = tf.where(k >= 6 * chroma, k - 6 * chroma, k)
    below = tf.clip_by_value(tf.minimum(k, 4 * chroma - k), 0, chroma)
    below = tf.where(tf.equal(draws.hue, 0), value - planes, below)
    return value - below * tf.minimum(draws.saturation, tf.math.divide_no_nan(value, chroma))
