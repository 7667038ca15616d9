"""Augments examples in the memory of the device: the augmentations of `augment` in JAX.

Corners, labels, and scaled pixels are computed in the same integers, so that without photometric
distortion the crops are equal bit for bit. Colors are computed in float32 in another order, so that
a level may differ by one. Pixels of more than 8 bits are computed in float32 by both.
"""

from typing import NamedTuple, TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt8

from kdjax.data.loading.sampling import (
    CROP_TRIES,
    WEIGHT_BITS,
    AugmentOptions,
    Draws,
)
from kdjax.utils.classes import IGNORE_LABEL
from kdjax.utils.errors import UserError

# Longer sides, before or after scaling, exceed integers of 32 bits.
MAX_SIDE = 1 << 18
_DIGIT_BITS = 11


class PaddedExamples(TypedDict):
    """Examples on the device, padded below and on the right to a common size.

    `image` [N, H, W, C], for photos [N, H, W, 3], and `label` [N, H, W] are uint8, but images of
    other bands than those of photos may have more bits. `size` [N, 2] int32 holds height and width
    of each example without its padding.
    """

    image: Shaped[Array, "N H W C"]
    label: UInt8[Array, "N H W"]
    size: Int[Array, "N 2"]


class _Crop(NamedTuple):
    """A crop: the index and size of its example, the scaled size, and the corner in it."""

    example: Int[Array, ""]
    size: Int[Array, "2"]
    scaled: Int[Array, "2"]
    corner: Int[Array, "2"]


def augment_batch(
    examples: PaddedExamples, indices: Int[Array, "B"], draws: Draws, options: AugmentOptions
) -> dict[str, Array]:
    """Scales, crops, flips and distorts examples, under `jax.jit`.

    Args:
      examples: the examples, on every device.
      indices: the examples of the batch.
      draws: their random numbers, with an axis `[B]`.
      options: the augmentations.

    Returns:
      What `kdjax.data.loading.augment.augment` returns, with an axis `[B]`. With `options.place`
      also `index` [B], the indices.

    Raises:
      UserError: if sides may be longer than `MAX_SIDE`, before or after scaling.
    """
    sides, scale = examples["image"].shape[1:3], max(options.scale_range)
    if max(*sides, scale * max(options.base_size or sides)) > MAX_SIDE:
        raise UserError(
            f"images of {sides[0]:,} x {sides[1]:,} pixels (height and width), scaled by up to "
            f"{scale:g}, have sides of more than {MAX_SIDE:,} on the device; set "
            'config.data.cache to "host"'
        )
    crops = jax.vmap(lambda index, numbers: _augment(examples, index, numbers, options))(
        indices, draws
    )
    return {**crops, "index": indices} if options.place else crops


def _augment(
    examples: PaddedExamples, index: Int[Array, ""], draws: Draws, options: AugmentOptions
) -> dict[str, Array]:
    size = examples["size"][index]
    scaled = _scaled_size(size, draws.scale, options)
    low, high = jnp.zeros(2, jnp.int32), jnp.maximum(scaled - jnp.array(options.crop_size), 0)
    if options.class_uniform:
        low, high = _around_class(examples["label"][index], size, scaled, high, draws, options)
    room = high - low + 1
    corners = jnp.minimum((draws.corners * room.astype(jnp.float32)).astype(jnp.int32), room - 1)
    corners += low

    def label_at(corner: Int[Array, "2"]) -> UInt8[Array, "h w"]:
        crop = _Crop(index, size, scaled, corner)
        return _sample_label(examples["label"], crop, options.crop_size)

    corner = corners[_first_varied(label_at, corners, options)]
    crop = _Crop(index, size, scaled, corner)
    clean = _sample_image(examples["image"], crop, options.crop_size)
    result = {"image": distort(clean, draws) if options.distorts else clean}
    result["label"] = label_at(corner)
    if options.clean_view:
        result["clean"] = clean
    if options.flip:
        # The padding stays on the right, so its columns move and are not mirrored.
        width = jnp.minimum(scaled[1] - corner[1], options.crop_size[1])
        columns = jnp.arange(options.crop_size[1])
        columns = jnp.where(draws.mirrored, (width - 1 - columns) % options.crop_size[1], columns)
        result = {key: value[:, columns] for key, value in result.items()}
    inside = _inside(crop, options.crop_size)
    result = {
        key: jnp.where(inside, value, IGNORE_LABEL)
        if key == "label"
        else jnp.where(inside[..., None], value, jnp.array(options.bands.padding, value.dtype))
        for key, value in result.items()
    }
    if options.place:
        result["place"] = jnp.append(jnp.append(scaled, corner), draws.mirrored.astype(jnp.int32))
    return result


def _scaled_size(
    size: Int[Array, "2"], scale: Float[Array, ""], options: AugmentOptions
) -> Int[Array, "2"]:
    """Returns height and width after scaling. Divides sizes in integers."""
    if not options.base_size:
        return jnp.maximum(jnp.round(size.astype(jnp.float32) * scale).astype(jnp.int32), 1)
    long, short = jnp.max(size), jnp.min(size)
    to_long, to_short = (
        jnp.maximum((side * scale).astype(jnp.int32), 1) for side in options.base_size
    )
    long_binds = _multiply_divide(to_long, short, long)[0] < to_short
    target, side = jnp.where(long_binds, to_long, to_short), jnp.where(long_binds, long, short)
    whole, rest = _multiply_divide(size, target, side)
    return jnp.maximum(whole + (2 * rest >= side), 1)


def _around_class(
    label: UInt8[Array, "H W"],
    size: Int[Array, "2"],
    scaled: Int[Array, "2"],
    last: Int[Array, "2"],
    draws: Draws,
    options: AugmentOptions,
) -> tuple[Int[Array, "2"], Int[Array, "2"]]:
    """Returns the first and the last corner of crops that show a pixel of the wanted class.

    All corners up to `last` if the label has no such pixel.
    """
    found = jnp.cumsum((label.ravel() == draws.wanted).astype(jnp.int32))
    count = found[-1]
    place = (draws.anchor * count.astype(jnp.float32)).astype(jnp.int32)
    first = jnp.searchsorted(found, jnp.minimum(place, count - 1), side="right")
    pixel = jnp.stack(jnp.divmod(first, label.shape[1])).astype(jnp.int32)
    target = jnp.stack(
        [_multiply_divide(2 * pixel[a] + 1, scaled[a], 2 * size[a])[0] for a in (0, 1)]
    )
    low = jnp.minimum(jnp.maximum(target - jnp.array(options.crop_size) + 1, 0), last)
    return jnp.where(count > 0, low, 0), jnp.where(count > 0, jnp.minimum(target, last), last)


def _multiply_divide(
    a: Int[Array, "*n"], b: Int[Array, "*n"], divisor: Int[Array, "*n"]
) -> tuple[Int[Array, "*n"], Int[Array, "*n"]]:
    """Returns quotient and remainder of `a * b` by `divisor` in 32 bits, if the product needs 64.

    Long division in two digits. `a` is below 2^22, `b + divisor` is at most 2^20, and none is
    negative.
    """
    high = (a >> _DIGIT_BITS) * b
    divisor = jnp.broadcast_to(divisor, high.shape)
    # `//` checks the signs, and XLA repeats the division for each pixel of a crop.
    first = jax.lax.div(high, divisor)
    low = ((high - first * divisor) << _DIGIT_BITS) + (a & ((1 << _DIGIT_BITS) - 1)) * b
    second = jax.lax.div(low, divisor)
    return (first << _DIGIT_BITS) + second, low - second * divisor


def _first_varied(label_at, corners: Int[Array, "T 2"], options: AugmentOptions) -> Int[Array, ""]:
    """Returns the index of the first corner whose crop no class fills, or else of the last."""
    if options.max_class_share >= 1:
        return jnp.zeros((), jnp.int32)

    def filled(index: Int[Array, ""]) -> Bool[Array, ""]:
        # On devices, comparing and adding is much faster than scattering into bins.
        crop = label_at(corners[index])[..., None]
        counts = jnp.sum(crop == jnp.arange(IGNORE_LABEL, dtype=jnp.uint8), (0, 1), jnp.float32)
        return jnp.max(counts) >= options.max_class_share * jnp.sum(counts)

    return jax.lax.while_loop(
        lambda index: (index < CROP_TRIES) & filled(index),
        lambda index: index + 1,
        jnp.zeros((), jnp.int32),
    )


def _inside(crop: _Crop, crop_size: tuple[int, int]) -> Bool[Array, "h w"]:
    """Returns True for the pixels of a crop that the example covers."""
    rows, columns = (
        jnp.arange(crop_size[axis]) + crop.corner[axis] < crop.scaled[axis] for axis in (0, 1)
    )
    return rows[:, None] & columns


def _centers(
    crop: _Crop, axis: int, crop_size: tuple[int, int]
) -> tuple[Int[Array, "n"], Int[Array, "n"]]:
    """Returns the source pixel of each center of a crop's pixels, and the 2 * scaled-ths in it.

    Pixels beyond the example repeat its last one.
    """
    scaled = crop.scaled[axis]
    target = jnp.minimum(jnp.arange(crop_size[axis]) + crop.corner[axis], scaled - 1)
    return _multiply_divide(2 * target + 1, crop.size[axis], 2 * scaled)


def _sample_label(
    labels: UInt8[Array, "N H W"], crop: _Crop, crop_size: tuple[int, int]
) -> UInt8[Array, "h w"]:
    """Returns a crop of a scaled label, 255 outside."""
    rows, columns = (_centers(crop, axis, crop_size)[0] for axis in (0, 1))
    return jnp.where(_inside(crop, crop_size), labels[crop.example, rows][:, columns], IGNORE_LABEL)


def _sample_image(
    images: Shaped[Array, "N H W C"], crop: _Crop, crop_size: tuple[int, int]
) -> Shaped[Array, "h w C"]:
    """Returns a crop of a bilinearly scaled image, with arbitrary pixels outside."""
    integers = images.dtype == jnp.uint8

    def neighbors(axis: int) -> tuple[Array, Array, Array]:
        scaled = crop.scaled[axis]
        whole, part = _centers(crop, axis, crop_size)
        # Half a pixel back, to interpolate between the centers of pixels.
        before = part < scaled
        low = whole - before
        part = jnp.where(before, part + scaled, part - scaled)
        weight = (part * (1 << WEIGHT_BITS) + scaled) // (2 * scaled)
        return jnp.maximum(low, 0), jnp.minimum(low + 1, crop.size[axis] - 1), weight

    def blend(low: Array, high: Array, weight: Array) -> Array:
        if not integers:
            low, high = low.astype(jnp.float32), high.astype(jnp.float32)
            return low + (high - low) * (weight.astype(jnp.float32) / (1 << WEIGHT_BITS))
        low, high = low.astype(jnp.int32), high.astype(jnp.int32)
        return low * (1 << WEIGHT_BITS) + (high - low) * weight

    top, bottom, down = neighbors(0)
    left, right, across = neighbors(1)
    rows = blend(images[crop.example, top], images[crop.example, bottom], down[:, None, None])
    pixels = blend(rows[:, left], rows[:, right], across[:, None])
    if not integers:
        return pixels
    half = 1 << (2 * WEIGHT_BITS - 1)
    return ((pixels + half) >> (2 * WEIGHT_BITS)).astype(jnp.uint8)


def distort(image: UInt8[Array, "h w 3"], draws: Draws) -> UInt8[Array, "h w 3"]:
    """Distorts colors as mmsegmentation does, but rounds once at the end."""

    def contrast(image: Float[Array, "h w 3"], wanted: Bool[Array, ""]) -> Float[Array, "h w 3"]:
        return jnp.where(wanted, jnp.clip(image * draws.contrast, 0, 255), image)

    result = jnp.clip(image.astype(jnp.float32) + draws.brightness, 0, 255)
    result = contrast(result, draws.contrast_first)
    result = jnp.where(draws.saturation != 1, _saturate(result, draws.saturation), result)
    result = jnp.where(draws.hue != 0, _turn_hue(result, draws.hue), result)
    result = contrast(result, ~draws.contrast_first)
    return jnp.round(result).astype(jnp.uint8)


def _saturate(image: Float[Array, "h w 3"], factor: Float[Array, ""]) -> Float[Array, "h w 3"]:
    """Scales the saturation of HSV, at most to 1. Hue and value stay."""
    value = jnp.max(image, -1, keepdims=True)
    chroma = value - jnp.min(image, -1, keepdims=True)
    factor = jnp.minimum(factor, jnp.where(chroma > 0, value / jnp.maximum(chroma, 1e-6), 0))
    return value - (value - image) * factor


def _turn_hue(image: Float[Array, "h w 3"], turns: Float[Array, ""]) -> Float[Array, "h w 3"]:
    """Moves the hue of HSV around its circle. Saturation and value stay."""
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    value, least = jnp.max(image, -1), jnp.min(image, -1)
    chroma = value - least
    # In sixths of the circle, from red over green and blue.
    hue = jnp.where(
        value == red,
        green - blue,
        jnp.where(value == green, blue - red + 2 * chroma, red - green + 4 * chroma),
    )
    hue = (hue / jnp.maximum(chroma, 1e-6) + 6 * turns) % 6
    shares = jnp.stack([abs(hue - 3) - 1, 2 - abs(hue - 2), 2 - abs(hue - 4)], -1)
    return least[..., None] + chroma[..., None] * jnp.clip(shares, 0, 1)
