"""Resizing of maps and labels."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def resize(
    x: Float[Array, "*batch H W C"], size: tuple[int, ...], *, align_corners: bool = False
) -> Float[Array, "*batch h w C"]:
    """Resizes a map bilinearly without antialiasing, as PyTorch's `interpolate`.

    Args:
      x: the map.
      size: height and width of the result.
      align_corners: True aligns the centers of the corner pixels, False the edges of the maps.
    """
    *batch, height, width, channels = x.shape
    if (height, width) == tuple(size):
        return x
    # A pooled image needs no interpolation, and TensorFlow Lite computes the general case wrongly.
    if (height, width) == (1, 1):
        return jnp.broadcast_to(x, (*batch, *size, channels))
    if align_corners:
        rows, columns = (
            resizing_weights(old, new, align_corners=True).astype(x.dtype)
            for old, new in zip((height, width), size, strict=True)
        )
        x = jnp.einsum("nh,...hwc->...nwc", rows, x)
        return jnp.einsum("mw,...nwc->...nmc", columns, x)
    return jax.image.resize(x, (*batch, *size, channels), method="bilinear", antialias=False)


def resizing_weights(
    size: int, new_size: int, *, align_corners: bool
) -> Float[Array, "new_size size"]:
    """Returns the matrix that interpolates one axis linearly from `size` to `new_size` places."""
    # Positions are integers in units of 1 / step, because float32 would lose the fraction.
    if align_corners:
        step = max(new_size - 1, 1)
        position = jnp.arange(new_size) * (size - 1)
    else:
        step = 2 * new_size
        position = (2 * jnp.arange(new_size) + 1) * size - new_size
    position = jnp.clip(position, 0, step * (size - 1))
    distance = jnp.abs(position[:, None] - step * jnp.arange(size))
    return jnp.maximum(step - distance, 0).astype(jnp.float32) / step


def sampling_weights(
    centers: Float[Array, " places"], size: Int[Array, ""], length: int
) -> Float[Array, "places length"]:
    """Returns the matrix that samples an axis linearly, for a size that is traced.

    Args:
      centers: where to sample, in cells from the start of the axis; the first cell's center is at
        0.5. Positions beyond the outermost centers take the value of the edge.
      size: how many of the cells hold data.
      length: of the axis, with padding.
    """
    places = jnp.clip(centers - 0.5, 0, jnp.maximum(size - 1, 0))
    return jnp.maximum(1 - jnp.abs(places[:, None] - jnp.arange(length)), 0)


def resize_labels(labels: Int[Array, "*batch H W"], size: tuple[int, ...]) -> Any:
    """Returns the label under the center of each cell of a map of `size`, `[..., h, w]`.

    The centers are those of bilinear resizing without aligned corners. PyTorch's "nearest" takes
    the upper left pixel of the cell instead.
    """
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new)
        for old, new in zip(labels.shape[-2:], size, strict=True)
    )
    return labels[..., rows, :][..., columns]
