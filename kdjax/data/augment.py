"""The field's training augmentations of one example, as pure functions of a seed.

Nothing here draws from a global generator: an example's random numbers come all at once from its
seed, so what happens to it depends neither on threads nor on what came before.
"""

import dataclasses
from collections.abc import Callable

from kdjax.data._tensorflow import tf
from kdjax.data.builder import IGNORE_LABEL

# The rounded ImageNet mean: what normalisation on the device turns into (almost) 0.
IMAGE_PADDING = (124, 116, 104)
# How many crops are tried for one that no class fills; the next one is taken as it is.
_CROP_TRIES = 10


@dataclasses.dataclass(frozen=True)
class AugmentOptions:
    """What training does to an example.

    Attributes:
        crop_size: height and width of the crop, in pixels. Where the scaled image is smaller, it
            is padded below and on the right.
        scale_range: bounds of the random factor by which the image is scaled first.
        max_class_share: a crop is drawn again while one class covers more than this share of its
            labelled pixels, ten times at most; 1 takes the first.
        flip: mirror every other example, left to right.
        photometric: change brightness, contrast, saturation and hue.
    """

    crop_size: tuple[int, int]
    scale_range: tuple[float, float] = (0.5, 2.0)
    max_class_share: float = 0.75
    flip: bool = True
    photometric: bool = True


def augment(
    image: tf.Tensor, label: tf.Tensor, seed: tf.Tensor, options: AugmentOptions
) -> tuple[tf.Tensor, tf.Tensor]:
    """Scales, crops, flips and distorts one example; for use inside a `tf.function`.

    The result is that of scaling the whole image bilinearly and the whole label to the nearest
    pixel, and cropping after that; but only pixels of the crop are ever computed.

    Args:
        image: uint8 `[H, W, 3]`.
        label: uint8 `[H, W]`.
        seed: int64 `[2]`, all that the result depends on beside the example and the options.
        options: what to do.

    Returns:
        The image, uint8 `[h, w, 3]`, padded with `IMAGE_PADDING`; the label, uint8 `[h, w]`, padded
        with 255.
    """
    draws = _CROP_TRIES + 1
    scale, flip, corners, distortions = tf.split(
        tf.random.stateless_uniform([2 + 2 * draws + 9], seed, alg="philox"), [1, 1, 2 * draws, 9]
    )
    low, high = options.scale_range
    factor = low + (high - low) * scale[0]
    size = tf.cast(tf.shape(label), tf.float32)
    scaled = tf.maximum(tf.cast(tf.round(size * factor), tf.int32), 1)
    room = tf.maximum(scaled - options.crop_size, 0) + 1
    corners = tf.cast(tf.reshape(corners, [draws, 2]) * tf.cast(room, tf.float32), tf.int32)

    corner = corners[_first_varied(label, scaled, corners, options)]
    pixels = _sample_image(image, scaled, corner, options.crop_size)
    if options.photometric:
        pixels = _distort(pixels, distortions)
    image = tf.cast(tf.round(pixels), tf.uint8)
    label = _sample_label(label, scaled, corner, options.crop_size)
    if options.flip:
        image, label = tf.cond(
            flip[0] < 0.5,
            lambda: (tf.reverse(image, [1]), tf.reverse(label, [1])),
            lambda: (image, label),
        )
    return _pad(image, label, options.crop_size)


def _first_varied(
    label: tf.Tensor, scaled: tf.Tensor, corners: tf.Tensor, options: AugmentOptions
) -> tf.Tensor:
    """Index of the first corner whose crop no class fills, or of the last corner."""
    if options.max_class_share >= 1:
        return tf.constant(0)

    def filled(index: tf.Tensor) -> tf.Tensor:
        crop = _sample_label(label, scaled, corners[index], options.crop_size)
        counts = tf.raw_ops.Bincount(
            arr=tf.cast(crop, tf.int32), size=IGNORE_LABEL, weights=tf.constant([], tf.float32)
        )
        return tf.reduce_max(counts) >= options.max_class_share * tf.reduce_sum(counts)

    last = len(corners) - 1
    (index,) = tf.while_loop(
        lambda index: (index < last) & filled(index), lambda index: (index + 1,), (0,)
    )
    return index


def _sample_label(
    label: tf.Tensor, scaled: tf.Tensor, corner: tf.Tensor, crop_size: tuple[int, int]
) -> tf.Tensor:
    """The crop at `corner` of the label scaled to `scaled`.

    A pixel takes the label in which its centre falls: floor((i + 1/2) * source / scaled), here in
    integers. This is the nearest neighbour of the point that `_sample_image` interpolates at.
    """
    for axis in (0, 1):
        end = tf.minimum(corner[axis] + crop_size[axis], scaled[axis])
        target = tf.range(corner[axis], end)
        source = (2 * target + 1) * tf.shape(label)[axis] // (2 * scaled[axis])
        label = tf.gather(label, source, axis=axis)
    return label


def _sample_image(
    image: tf.Tensor, scaled: tf.Tensor, corner: tf.Tensor, crop_size: tuple[int, int]
) -> tf.Tensor:
    """The crop at `corner` of the image scaled bilinearly to `scaled`, float32 in 0..255.

    Pixel i lies at (i + 1/2) * source / scaled - 1/2 of the source, without antialiasing.
    """
    return tf.raw_ops.ScaleAndTranslate(
        images=image[None],
        size=tf.minimum(scaled - corner, crop_size),
        scale=tf.cast(scaled / tf.shape(image)[:2], tf.float32),
        translation=-tf.cast(corner, tf.float32),
        kernel_type="triangle",
        antialias=False,
    )[0]


def _pad(
    image: tf.Tensor, label: tf.Tensor, crop_size: tuple[int, int]
) -> tuple[tf.Tensor, tf.Tensor]:
    missing = crop_size - tf.shape(label)
    below, right = [0, missing[0]], [0, missing[1]]
    label = tf.pad(label, [below, right], constant_values=IGNORE_LABEL)
    inside = tf.pad(tf.ones(tf.shape(image)[:2], tf.bool), [below, right])
    image = tf.pad(image, [below, right, [0, 0]])
    image = tf.where(tf.expand_dims(inside, 2), image, tf.constant(IMAGE_PADDING, tf.uint8))
    return tf.ensure_shape(image, [*crop_size, 3]), tf.ensure_shape(label, crop_size)


def _distort(image: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
    """Photometric distortion as mmsegmentation's; four coins, four amounts and the order's coin."""

    def between(low: float, high: float, number: tf.Tensor) -> tf.Tensor:
        return low + (high - low) * number

    def contrast(image: tf.Tensor) -> tf.Tensor:
        return _clip(image * between(0.5, 1.5, numbers[5]))

    contrasted, contrast_first = numbers[1] < 0.5, numbers[8] < 0.5
    image = _apply_if(
        numbers[0] < 0.5, lambda image: _clip(image + between(-32, 32, numbers[4])), image
    )
    image = _apply_if(contrasted & contrast_first, contrast, image)
    image = _apply_if(
        numbers[2] < 0.5,
        lambda image: tf.image.adjust_saturation(image, between(0.5, 1.5, numbers[6])),
        image,
    )
    # 18 of OpenCV's 180 steps around the circle of hues.
    image = _apply_if(
        numbers[3] < 0.5,
        lambda image: tf.image.adjust_hue(image, between(-0.1, 0.1, numbers[7])),
        image,
    )
    return _apply_if(contrasted & tf.logical_not(contrast_first), contrast, image)


def _clip(image: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(image, 0, 255)


def _apply_if(
    condition: tf.Tensor, function: Callable[[tf.Tensor], tf.Tensor], image: tf.Tensor
) -> tf.Tensor:
    return tf.cond(condition, lambda: function(image), lambda: image)
