"""The field's training augmentations of one example in tf.data, as pure functions of its draws."""

from collections.abc import Callable

from kdjax.data._tensorflow import tf
from kdjax.data.augmentation import (
    CROP_TRIES,
    IMAGE_PADDING,
    LABEL_PADDING,
    WEIGHT_BITS,
    AugmentOptions,
    Draws,
)


def augment(
    image: tf.Tensor, label: tf.Tensor, draws: Draws, options: AugmentOptions
) -> dict[str, tf.Tensor]:
    """Scales, crops, flips and distorts one example; for use inside a `tf.function`.

    The result is that of scaling the whole image bilinearly and the whole label to the nearest
    pixel, and cropping after that; but only pixels of the crop are ever computed.

    Args:
        image: uint8 `[H, W, 3]`.
        label: uint8 `[H, W]`.
        draws: the example's numbers, without an axis `[B]`.
        options: what to do.

    Returns:
        `image`, uint8 `[h, w, 3]`, padded with `IMAGE_PADDING`; `label`, uint8 `[h, w]`, padded
        with 255; with `options.clean_view` also `clean`, the image in its own colours.
    """
    scaled = _scaled_size(tf.shape(label), draws.scale, options)
    room = tf.maximum(scaled - options.crop_size, 0) + 1
    corners = tf.minimum(
        tf.cast(draws.corners * tf.cast(room, tf.float32), tf.int32),
        room - 1,  # a number just below 1 may round to it
    )
    corner = corners[_first_varied(label, scaled, corners, options)]
    crop = {
        "image": _sample_image(image, scaled, corner, options.crop_size, draws.mirrored),
        "label": _sample_label(label, scaled, corner, options.crop_size, draws.mirrored),
    }
    if options.clean_view:
        crop["clean"] = crop["image"]
    if options.photometric:
        crop["image"] = distort(crop["image"], draws)
    return _pad(crop, options.crop_size)


def _scaled_size(size: tf.Tensor, scale: tf.Tensor, options: AugmentOptions) -> tf.Tensor:
    """Height and width after scaling, in integers where sizes are divided."""
    if not options.base_size:
        scaled = tf.cast(tf.round(tf.cast(size, tf.float32) * scale), tf.int32)
        return tf.maximum(scaled, 1)
    long, short = tf.reduce_max(size), tf.reduce_min(size)
    to_long, to_short = (
        tf.maximum(tf.cast(side * scale, tf.int32), 1) for side in options.base_size
    )
    long_binds = to_long * short < to_short * long
    target, side = tf.where(long_binds, to_long, to_short), tf.where(long_binds, long, short)
    return tf.maximum((2 * size * target + side) // (2 * side), 1)


def _first_varied(
    label: tf.Tensor, scaled: tf.Tensor, corners: tf.Tensor, options: AugmentOptions
) -> tf.Tensor:
    """Index of the first corner whose crop no class fills, or of the last corner."""
    if options.max_class_share >= 1:
        return tf.constant(0)

    def filled(index: tf.Tensor) -> tf.Tensor:
        crop = _sample_label(label, scaled, corners[index], options.crop_size, tf.constant(False))
        counts = tf.raw_ops.Bincount(
            arr=tf.cast(crop, tf.int32), size=LABEL_PADDING, weights=tf.constant([], tf.float32)
        )
        return tf.reduce_max(counts) >= options.max_class_share * tf.reduce_sum(counts)

    (index,) = tf.while_loop(
        lambda index: (index < CROP_TRIES) & filled(index), lambda index: (index + 1,), (0,)
    )
    return index


def _targets(
    scaled: tf.Tensor, corner: tf.Tensor, crop_size: tuple[int, int], mirrored: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The rows and columns of the scaled example that a crop shows; a mirrored one from the right.

    Taking them in that order costs nothing, unlike turning the pixels around.
    """
    end = tf.minimum(corner + crop_size, scaled)
    rows, columns = tf.range(corner[0], end[0]), tf.range(corner[1], end[1])
    return rows, tf.where(mirrored, tf.reverse(columns, [0]), columns)


def _sample_label(
    label: tf.Tensor,
    scaled: tf.Tensor,
    corner: tf.Tensor,
    crop_size: tuple[int, int],
    mirrored: tf.Tensor,
) -> tf.Tensor:
    """The crop at `corner` of the label scaled to `scaled`.

    A pixel takes the label in which its centre falls: floor((i + 1/2) * source / scaled), here in
    integers. This is the nearest neighbour of the point that `_sample_image` interpolates at.
    """
    for axis, target in enumerate(_targets(scaled, corner, crop_size, mirrored)):
        source = (2 * target + 1) * tf.shape(label)[axis] // (2 * scaled[axis])
        label = tf.gather(label, source, axis=axis)
    return label


def _sample_image(
    image: tf.Tensor,
    scaled: tf.Tensor,
    corner: tf.Tensor,
    crop_size: tuple[int, int],
    mirrored: tf.Tensor,
) -> tf.Tensor:
    """The crop at `corner` of the image scaled bilinearly to `scaled`, in integers.

    Pixel i lies at (i + 1/2) * source / scaled - 1/2 of the source, without antialiasing.
    """
    size, (rows, columns) = tf.shape(image), _targets(scaled, corner, crop_size, mirrored)
    top, bottom, down = _neighbours(size[0], scaled[0], rows)
    left, right, across = _neighbours(size[1], scaled[1], columns)
    # Columns that the crop does not touch are not blended.
    first_column = tf.reduce_min(left)
    image = image[:, first_column : tf.reduce_max(right) + 1]
    blended = _blend(tf.gather(image, top), tf.gather(image, bottom), down[:, None, None])
    pixels = _blend(
        tf.gather(blended, left - first_column, axis=1),
        tf.gather(blended, right - first_column, axis=1),
        across[:, None],
    )
    half = 1 << (2 * WEIGHT_BITS - 1)
    return tf.cast(tf.bitwise.right_shift(pixels + half, 2 * WEIGHT_BITS), tf.uint8)


def _neighbours(
    size: tf.Tensor, scaled: tf.Tensor, target: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Of the scaled pixels `target` along an axis: the two that each lies between, and where."""
    place = (2 * target + 1) * size - scaled  # in parts of 2 * scaled
    low = place // (2 * scaled)
    part = place - low * 2 * scaled
    weight = (part * (1 << WEIGHT_BITS) + scaled) // (2 * scaled)
    return tf.maximum(low, 0), tf.minimum(low + 1, size - 1), weight


def _blend(low: tf.Tensor, high: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    low, high = tf.cast(low, tf.int32), tf.cast(high, tf.int32)
    return low * (1 << WEIGHT_BITS) + (high - low) * weight


def distort(image: tf.Tensor, draws: Draws) -> tf.Tensor:
    """Photometric distortion as mmsegmentation's, rounded once at the end: uint8 `[h, w, 3]`."""

    def contrast(image: tf.Tensor) -> tf.Tensor:
        return tf.clip_by_value(image * draws.contrast, 0, 255)

    contrasted = tf.not_equal(draws.contrast, 1)
    result = tf.clip_by_value(tf.cast(image, tf.float32) + draws.brightness, 0, 255)
    result = _apply_if(contrasted & draws.contrast_first, contrast, result)
    result = _apply_if(
        tf.not_equal(draws.saturation, 1), lambda image: _saturate(image, draws.saturation), result
    )
    result = _apply_if(
        tf.not_equal(draws.hue, 0), lambda image: tf.image.adjust_hue(image, draws.hue), result
    )
    result = _apply_if(contrasted & tf.logical_not(draws.contrast_first), contrast, result)
    return tf.cast(tf.round(result), tf.uint8)


def _saturate(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Scales the saturation of HSV, at most to 1, which leaves hue and value as they are."""
    red, green, blue = tf.unstack(image, axis=-1)
    value = tf.maximum(tf.maximum(red, green), blue)
    chroma = value - tf.minimum(tf.minimum(red, green), blue)
    factor = tf.minimum(factor, tf.math.divide_no_nan(value, chroma))
    return tf.stack([value - (value - plane) * factor for plane in (red, green, blue)], axis=-1)


def _apply_if(
    condition: tf.Tensor, function: Callable[[tf.Tensor], tf.Tensor], image: tf.Tensor
) -> tf.Tensor:
    return tf.cond(condition, lambda: function(image), lambda: image)


def _pad(crop: dict[str, tf.Tensor], crop_size: tuple[int, int]) -> dict[str, tf.Tensor]:
    missing = crop_size - tf.shape(crop["label"])
    padded = tf.cond(tf.reduce_any(missing > 0), lambda: _padded(crop, missing), lambda: crop)
    return {
        key: tf.ensure_shape(value, crop_size if key == "label" else [*crop_size, 3])
        for key, value in padded.items()
    }


def _padded(crop: dict[str, tf.Tensor], missing: tf.Tensor) -> dict[str, tf.Tensor]:
    below, right = [0, missing[0]], [0, missing[1]]
    inside = tf.pad(tf.ones_like(crop["label"], tf.bool), [below, right])
    inside = tf.expand_dims(inside, -1)
    padded = {}
    for key, value in crop.items():
        if key == "label":
            padded[key] = tf.pad(value, [below, right], constant_values=LABEL_PADDING)
        else:
            value = tf.pad(value, [below, right, [0, 0]])
            padded[key] = tf.where(inside, value, tf.constant(IMAGE_PADDING, tf.uint8))
    return padded
