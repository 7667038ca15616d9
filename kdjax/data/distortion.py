"""Photometric distortion of one crop, compiled by XLA to one pass over its pixels."""

from kdjax.data._tensorflow import tf
from kdjax.data.augmentation import Draws


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
