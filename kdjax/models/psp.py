"""The pyramid pooling of PSPNet (Zhao et al., CVPR 2017), as in mmsegmentation's PSPHead."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models.layers import ConvNorm, adaptive_average_pools, resize


class PyramidPooling(nnx.Module):
    """Pools to 1, 2, 3 and 6 bins, concatenates with the input, 3x3 bottleneck.

    Args:
      in_channels: of the map that it reads.
      channels: of the result, and of each pooled map where nothing else is said.
      quarter: whether the pooled maps have a quarter of the input's channels each.
      activation: behind every batch norm.
      align_corners: how the pooled maps are resized.
      dtype: compute dtype; parameters are float32.
      rngs: source of the initial parameters.
    """

    bins = (1, 2, 3, 6)

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        quarter: bool = False,
        activation: Callable[[Array], Array] = nnx.relu,
        align_corners: bool = False,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.align_corners = align_corners
        pooled = in_channels // 4 if quarter else channels
        self.branches = nnx.List(
            [
                ConvNorm(in_channels, pooled, 1, activation=activation, dtype=dtype, rngs=rngs)
                for _ in self.bins
            ]
        )
        joined = in_channels + len(self.bins) * pooled
        self.bottleneck = ConvNorm(
            joined, channels, 3, activation=activation, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: Float[Array, "B h w C"], *, train: bool) -> Float[Array, "B h w D"]:
        """Returns the map with what was pooled around every pixel."""
        maps = [x]
        pools = adaptive_average_pools(x, self.bins)
        for conv, pooled in zip(self.branches, pools, strict=True):
            pooled = conv(pooled, train=train)
            maps.append(resize(pooled, x.shape[1:3], align_corners=self.align_corners))
        return self.bottleneck(jnp.concatenate(maps, axis=-1), train=train)
