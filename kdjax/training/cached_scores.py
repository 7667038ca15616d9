"""Class scores of a teacher that were kept of whole images, seen where crops of these show them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def sample(
    scores: Float[Array, "B H W K"],
    sizes: Int[Array, "B 2"],
    places: Int[Array, "B 5"],
    crop_size: tuple[int, ...],
    grid: tuple[int, ...],
) -> Float[Array, "B h w K"]:
    """Samples maps of whole images bilinearly at the centres of the cells of their crops.

    Of a crop that is the whole image, unscaled and not mirrored, this is the map resized to `grid`
    without antialiasing, as `kdjax.models.layers.resize` does it.

    Args:
      scores: a map of every image, zero beyond its own size.
      sizes: height and width of each map without that padding.
      places: of every crop, as `kdjax.data.augment.augment` describes them: height and width of the
        scaled image, row and column of the corner, and whether the crop is mirrored.
      crop_size: height and width of the crops in pixels. Where a scaled image is smaller, the cells
        beyond it take what its edge shows.
      grid: h and w, the cells of a crop.

    Returns:
      Class scores in float32.
    """

    def one(
        scores: Float[Array, "H W K"], size: Int[Array, "2"], place: Int[Array, "5"]
    ) -> Float[Array, "h w K"]:
        rows, columns = (
            _weights(
                scores.shape[axis],
                size[axis],
                _centres(
                    place[axis],
                    place[2 + axis],
                    crop_size[axis],
                    grid[axis],
                    place[4] if axis else jnp.zeros((), jnp.int32),
                ),
            )
            for axis in (0, 1)
        )
        # Products of matrices: accelerators gather single cells slowly.
        exact = jax.lax.Precision.HIGHEST
        bands = jnp.einsum("iy,yxk->ixk", rows, scores.astype(jnp.float32), precision=exact)
        return jnp.einsum("jx,ixk->ijk", columns, bands, precision=exact)

    return jax.vmap(one)(scores, sizes, places)


def _centres(
    scaled: Int[Array, ""],
    corner: Int[Array, ""],
    crop: int,
    cells: int,
    mirrored: Int[Array, ""],
) -> Float[Array, " cells"]:
    """Along an axis, where the centres of a crop's cells lie: as shares of the scaled image."""
    last = jnp.minimum(corner + crop, scaled) - 1  # the last pixel that the crop shows
    pixels = corner + (jnp.arange(cells) + 0.5) * crop / cells - 0.5
    pixels = jnp.where(mirrored == 1, last + corner - pixels, pixels)
    return (pixels + 0.5) / scaled


def _weights(
    length: int, size: Int[Array, ""], centres: Float[Array, " cells"]
) -> Float[Array, "cells length"]:
    """Bilinear weights of the `size` cells of a map, padded to `length`, at `centres` of it.

    Centres outside it, as those of a crop beyond its image, take its edge.
    """
    points = jnp.clip(centres * size - 0.5, 0, size - 1)
    return jnp.maximum(1 - jnp.abs(points[:, None] - jnp.arange(length)), 0)
