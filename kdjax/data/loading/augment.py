"""The field's training augmentations of one example in tf.data, as pure functions of its draws.

Pixels are computed by XLA, which does in one pass what would be ten in TensorFlow's operations. It
compiles for each shape: crops are of one shape, and what they are taken from is filled up to few.
"""

import functools

from kdjax.data._tensorflow import tf
from kdjax.data.interface import Window, WindowReader
from kdjax.data.loading.sampling import (
    CROP_TRIES,
    IMAGE_PADDING,
    WEIGHT_BITS,
    AugmentOptions,
    Draws,
)
from kdjax.utils.classes import IGNORE_LABEL

_compiled = functools.partial(tf.function, jit_compile=True, autograph=False)


def augment(
    read_window: WindowReader, label: tf.Tensor, draws: Draws, options: AugmentOptions
) -> dict[str, tf.Tensor]:
    """Scales, crops, flips and distorts one example; for use inside a `tf.function`.

    The result is that of scaling the whole image bilinearly and the whole label to the nearest
    pixel, and cropping after that; but only pixels of the crop are ever computed, and of an image
    in tiles only those of the crop are decoded.

    Args:
      read_window: decodes a window of the image; called once.
      label: uint8 `[H, W]`.
      draws: the example's numbers, without an axis `[B]`.
      options: what to do.

    Returns:
      `image`, uint8 `[h, w, 3]`, padded with `IMAGE_PADDING`; `label`, uint8 `[h, w]`, padded
      with 255; with `options.clean_view` also `clean`, the image in its own colours; with
      `options.place` also `place`, int32 `[5]`: height and width of the scaled image, row and
      column of the crop's corner in it, and whether the crop was mirrored, 0 or 1.
    """
    size = tf.shape(label)
    scaled = _scaled_size(size, draws.scale, options)
    room = tf.maximum(scaled - options.crop_size, 0) + 1
    corners = tf.minimum(
        tf.cast(draws.corners * tf.cast(room, tf.float32), tf.int32),
        room - 1,  # a number just below 1 may round to it
    )
    corner, crop_label = _first_varied(label, scaled, corners, draws.mirrored, options)
    ends = tf.stack([corner, tf.minimum(corner + options.crop_size, scaled) - 1])
    low, high, _ = _neighbours(size, scaled, ends)
    window = read_window(low[0], high[1] + 1)
    image = _sample_image(window, size, scaled, corner, draws.mirrored, options.crop_size)
    crop = {"image": distort(image, draws) if options.photometric else image}
    if options.clean_view:
        crop["clean"] = image
    covered = scaled - corner
    crop = tf.cond(
        tf.reduce_any(covered < options.crop_size),
        lambda: {key: _padded(value, covered, options.crop_size) for key, value in crop.items()},
        lambda: crop,
    )
    crop["label"] = crop_label
    if options.place:
        crop["place"] = tf.concat([scaled, corner, tf.cast(draws.mirrored, tf.int32)[None]], 0)
    return crop


def _scaled_size(size: tf.Tensor, scale: tf.Tensor, options: AugmentOptions) -> tf.Tensor:
    """Height and width after scaling, in integers where sizes are divided."""
    if not options.base_size:
        scaled = tf.cast(tf.round(tf.cast(size, tf.float32) * scale), tf.int32)
        return tf.maximum(scaled, 1)
    size = tf.cast(size, tf.int64)  # of very wide images, products of sides need it
    long, short = tf.reduce_max(size), tf.reduce_min(size)
    to_long, to_short = (
        tf.maximum(tf.cast(side * scale, tf.int64), 1) for side in options.base_size
    )
    long_binds = to_long * short < to_short * long
    target, side = tf.where(long_binds, to_long, to_short), tf.where(long_binds, long, short)
    return tf.cast(tf.maximum((2 * size * target + side) // (2 * side), 1), tf.int32)


def _first_varied(
    label: tf.Tensor,
    scaled: tf.Tensor,
    corners: tf.Tensor,
    mirrored: tf.Tensor,
    options: AugmentOptions,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The first corner whose crop no class fills, or the last corner; and the crop of the label."""
    pixels = _filled_up(label)

    def crop_at(index: tf.Tensor) -> tf.Tensor:
        return _sample_label(
            pixels, tf.shape(label), scaled, corners[index], mirrored, options.crop_size
        )

    first = tf.constant(0)
    if options.max_class_share >= 1:
        return corners[first], crop_at(first)

    def filled(crop: tf.Tensor) -> tf.Tensor:
        # Labels that are ignored are beyond the bins, and not counted.
        counts = tf.raw_ops.DenseBincount(
            input=tf.cast(tf.reshape(crop, [-1]), tf.int32),
            size=IGNORE_LABEL,
            weights=tf.constant([], tf.float32),
        )
        return tf.reduce_max(counts) >= options.max_class_share * tf.reduce_sum(counts)

    index, crop = tf.while_loop(
        lambda index, crop: (index < CROP_TRIES) & filled(crop),
        lambda index, crop: (index + 1, crop_at(index + 1)),
        (first, crop_at(first)),
    )
    return corners[index], crop


def _filled_up(pixels: tf.Tensor) -> tf.Tensor:
    """The values in one dimension, and zeros up to a power of two, so that few lengths occur."""
    size = tf.size(pixels)
    lengths = tf.constant([1 << bits for bits in range(31)])
    missing = lengths[tf.searchsorted(lengths, size[None])[0]] - size
    return tf.concat([tf.reshape(pixels, [-1]), tf.zeros([missing], pixels.dtype)], 0)


def _targets(
    scaled: tf.Tensor, corner: tf.Tensor, mirrored: tf.Tensor, crop_size: tuple[int, int]
) -> tuple[tf.Tensor, tf.Tensor]:
    """The rows and columns of the scaled example that a crop shows; a mirrored one from the right.

    Those beyond the example are its last. Taking columns in that order costs nothing, unlike
    turning the pixels around.
    """
    last = tf.minimum(corner + crop_size, scaled) - 1
    rows, columns = (tf.minimum(corner[a] + tf.range(crop_size[a]), last[a]) for a in (0, 1))
    return rows, tf.where(mirrored, last[1] + corner[1] - columns, columns)


def _sample_label(
    pixels: tf.Tensor,
    size: tf.Tensor,
    scaled: tf.Tensor,
    corner: tf.Tensor,
    mirrored: tf.Tensor,
    crop_size: tuple[int, int],
) -> tf.Tensor:
    """The crop at `corner` of the label scaled to `scaled`, padded with 255.

    A pixel takes the label in which its centre falls: floor((i + 1/2) * source / scaled), here in
    integers. This is the nearest neighbour of the point that `_sample_image` interpolates at.
    """
    rows, columns = _label_places(size, scaled, corner, mirrored, crop_size)
    return _gather_label(pixels, rows, columns, scaled - corner, crop_size)


# Places are compiled apart from what is done with them: together, XLA would compute them, and their
# divisions, for each pixel anew.
@_compiled
def _label_places(
    size: tf.Tensor,
    scaled: tf.Tensor,
    corner: tf.Tensor,
    mirrored: tf.Tensor,
    crop_size: tuple[int, int],
) -> tuple[tf.Tensor, tf.Tensor]:
    targets = _targets(scaled, corner, mirrored, crop_size)
    rows, columns = (
        tf.cast(_centre(target, size[axis]) // tf.cast(2 * scaled[axis], tf.int64), tf.int32)
        for axis, target in enumerate(targets)
    )
    return rows * size[1], columns


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
    window: Window,
    size: tf.Tensor,
    scaled: tf.Tensor,
    corner: tf.Tensor,
    mirrored: tf.Tensor,
    crop_size: tuple[int, int],
) -> tf.Tensor:
    """The crop at `corner` of the image scaled bilinearly to `scaled`, in integers.

    Pixel i lies at (i + 1/2) * source / scaled - 1/2 of the source, without antialiasing.
    """
    tile = tf.shape(window.tiles)[1:3]
    layout = tile, window.per_row, window.corner
    places = _image_places(layout, size, scaled, corner, mirrored, crop_size)
    return _interpolate(_filled_up(window.tiles), *places)


@_compiled
def _image_places(
    layout: tuple[tf.Tensor, tf.Tensor, tf.Tensor],
    size: tf.Tensor,
    scaled: tf.Tensor,
    corner: tf.Tensor,
    mirrored: tf.Tensor,
    crop_size: tuple[int, int],
) -> tuple[tf.Tensor, ...]:
    """For both axes: where the two neighbours of each target lie in a window, and their weight."""
    tile, per_row, window_corner = layout
    rows, columns = _targets(scaled, corner, mirrored, crop_size)
    top, bottom, down = _neighbours(size[0], scaled[0], rows)
    left, right, across = _neighbours(size[1], scaled[1], columns)
    tile_size = tile[0] * tile[1] * 3

    def down_to(row: tf.Tensor) -> tf.Tensor:
        row -= window_corner[0]
        return row // tile[0] * per_row * tile_size + tf.math.floormod(row, tile[0]) * tile[1] * 3

    def across_to(column: tf.Tensor) -> tf.Tensor:
        column -= window_corner[1]
        return column // tile[1] * tile_size + tf.math.floormod(column, tile[1]) * 3

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
) -> tf.Tensor:
    def at(row: tf.Tensor, column: tf.Tensor) -> tf.Tensor:
        places = row[:, None, None] + (column[:, None] + tf.range(3))
        return tf.cast(tf.gather(pixels, places), tf.int32)

    blended = _blend(
        _blend(at(top, left), at(bottom, left), down[:, None, None]),
        _blend(at(top, right), at(bottom, right), down[:, None, None]),
        across[:, None],
    )
    half = 1 << (2 * WEIGHT_BITS - 1)
    return tf.cast(tf.bitwise.right_shift(blended + half, 2 * WEIGHT_BITS), tf.uint8)


def _neighbours(
    size: tf.Tensor, scaled: tf.Tensor, target: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Of the scaled pixels `target` along an axis: the two that each lies between, and where."""
    wide = tf.cast(scaled, tf.int64)
    place = _centre(target, size) - wide  # in parts of 2 * scaled
    low = place // (2 * wide)
    part = place - low * 2 * wide
    weight = tf.cast((part * (1 << WEIGHT_BITS) + wide) // (2 * wide), tf.int32)
    low = tf.cast(low, tf.int32)
    return tf.maximum(low, 0), tf.minimum(low + 1, size - 1), weight


def _centre(target: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Where the middle of a scaled pixel lies along an axis of `size`, in parts of 2 * scaled.

    In 64 bits: beyond 32 from sides of 23,170 pixels on, at a scale of 2.
    """
    return (2 * tf.cast(target, tf.int64) + 1) * tf.cast(size, tf.int64)


def _blend(low: tf.Tensor, high: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    return low * (1 << WEIGHT_BITS) + (high - low) * weight


def _inside(covered: tf.Tensor, crop_size: tuple[int, int]) -> tf.Tensor:
    """Where the crop shows the example, which covers so many of its rows and columns."""
    rows, columns = (tf.range(crop_size[axis]) < covered[axis] for axis in (0, 1))
    return rows[:, None] & columns


@_compiled
def _padded(image: tf.Tensor, covered: tf.Tensor, crop_size: tuple[int, int]) -> tf.Tensor:
    inside = tf.expand_dims(_inside(covered, crop_size), -1)
    return tf.where(inside, image, tf.constant(IMAGE_PADDING, tf.uint8))


def distort(image: tf.Tensor, draws: Draws) -> tf.Tensor:
    """Photometric distortion as mmsegmentation's, rounded once at the end: uint8 `[h, w, 3]`."""
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


@tf.function(jit_compile=True, autograph=False)
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
    """Turns the hue of HSV, and scales its saturation, at most to 1; the value stays.

    A plane is `value - chroma * clip(min(k, 4 - k), 0, 1)` with `k = (n + hue) mod 6`, the hue in
    sixths of its circle and n = 5, 3, 1 for red, green, blue. Here all is multiplied by the chroma,
    which may be 0.
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
