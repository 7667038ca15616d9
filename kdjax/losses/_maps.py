"""What brings maps and labels to one size, and student's channels to the teacher's."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def resize(
    x: Float[Array, "*batch H W C"], size: tuple[int, ...], *, align_corners: bool = False
) -> Float[Array, "*batch h w C"]:
    """Resizes a map bilinearly without antialiasing, as PyTorch.

    Args:
      x: the map.
      size: height and width of the result.
      align_corners: put the centres of the corner pixels on each other, else the corners of the
        images.
    """
    *batch, height, width, channels = x.shape
    if (height, width) == tuple(size):
        return x
    # A pooled image: nothing to interpolate, and TensorFlow Lite gets the general way wrong for it.
    if (height, width) == (1, 1):
        return jnp.broadcast_to(x, (*batch, *size, channels))
    if align_corners:
        rows, columns = map(aligned_matrix, (height, width), size)
        x = jnp.einsum("nh,...hwc->...nwc", jnp.asarray(rows, x.dtype), x)
        return jnp.einsum("mw,...nwc->...nmc", jnp.asarray(columns, x.dtype), x)
    return jax.image.resize(x, (*batch, *size, channels), method="bilinear", antialias=False)


@functools.cache
def aligned_matrix(size: int, wanted: int) -> np.ndarray:
    """Returns the weights [wanted, size] of an interpolation that aligns corners."""
    positions = np.arange(wanted) * ((size - 1) / max(wanted - 1, 1))
    distances = np.abs(positions[:, None] - np.arange(size))
    return np.maximum(1 - distances, 0).astype(np.float32)


def resize_labels(labels: Int[Array, "*batch H W"], size: tuple[int, ...]) -> Any:
    """Takes the label under the centre of each cell of a map of `size`: [..., h, w].

    The centres are those of bilinear resizing without aligned corners, so that a cell's label is
    the one that its scores are compared with once they are upsampled. (PyTorch's "nearest" takes
    the cell's upper left pixel instead.)
    """
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new)
        for old, new in zip(labels.shape[-2:], size, strict=True)
    )
    return labels[..., rows, :][..., columns]
