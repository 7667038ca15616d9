"""Maps of whole images, sampled where the crops of a batch lie."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kdjax.distillation import Maps
from kdjax.distillation.feature_maps import array_of
from kdjax.losses import sampling_weights


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CachedMaps:
    """The teacher's maps of a batch's images, for `kdjax.training.step.make_train_step`.

    Attributes:
      maps: by name, the maps of whole images [B, H, W, C], and their heights and widths [B, 2].
      places: of every crop; see `sample_map`.
      crop_size: height and width of the crops in pixels.
      grids: by name, height and width of the teacher's map of a crop. A map without an entry, as
        the class scores, gets the size of the student's class scores.
    """

    maps: Mapping[str, tuple[Float[Array, "B H W C"], Int[Array, "B 2"]]]
    places: Int[Array, "B 5"]
    crop_size: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    grids: tuple[tuple[str, tuple[int, int]], ...] = dataclasses.field(metadata={"static": True})

    def like(self, student: Maps) -> Maps:
        """Returns the maps of the crops."""
        grids = dict(self.grids)
        return {
            name: sample_map(
                values,
                sizes,
                self.places,
                self.crop_size,
                grids.get(name) or array_of(student["logits"]).shape[1:3],
            )
            for name, (values, sizes) in self.maps.items()
        }


def sample_map(
    values: Float[Array, "B H W C"],
    sizes: Int[Array, "B 2"],
    places: Int[Array, "B 5"],
    crop_size: tuple[int, ...],
    grid: tuple[int, ...],
) -> Float[Array, "B h w C"]:
    """Samples maps of whole images bilinearly at the centers of the cells of their crops.

    If a crop is the whole image, neither scaled nor mirrored, the result is the map resized to
    `grid` without antialiasing, as by `kdjax.models.layers.resize`.

    Args:
      values: a map of every image, zero beyond its size.
      sizes: height and width of each map without padding.
      places: of every crop, from `kdjax.data.loading.augment.augment`: height and width of the
        scaled image, row and column of the corner, and 1 if the crop is mirrored.
      crop_size: height and width of the crops in pixels. If a scaled image is smaller, the cells
        beyond it repeat its edge.
      grid: h and w, the cells of a crop.

    Returns:
      The maps of the crops in float32.
    """

    def one(
        values: Float[Array, "H W C"], size: Int[Array, "2"], place: Int[Array, "5"]
    ) -> Float[Array, "h w C"]:
        def weights(axis: int, mirrored: Any) -> Array:
            scaled, corner = place[axis], place[2 + axis]
            centers = _centers(scaled, corner, crop_size[axis], grid[axis], mirrored)
            return sampling_weights(size[axis] * centers, size[axis], values.shape[axis])

        rows, columns = weights(0, False), weights(1, place[4] == 1)
        # Matrix products, because accelerators gather single cells slowly.
        exact = jax.lax.Precision.HIGHEST
        bands = jnp.einsum("iy,yxk->ixk", rows, values.astype(jnp.float32), precision=exact)
        return jnp.einsum("jx,ixk->ijk", columns, bands, precision=exact)

    return jax.vmap(one)(values, sizes, places)


def _centers(
    scaled: Int[Array, ""],
    corner: Int[Array, ""],
    crop: int,
    cells: int,
    mirrored: Bool[Array, ""] | bool,
) -> Float[Array, " cells"]:
    """Returns the centers of a crop's cells along an axis, as shares of the scaled image."""
    last = jnp.minimum(corner + crop, scaled) - 1  # the last pixel of the crop
    pixels = corner + (jnp.arange(cells) + 0.5) * crop / cells - 0.5
    pixels = jnp.where(mirrored, last + corner - pixels, pixels)
    return (pixels + 0.5) / scaled
