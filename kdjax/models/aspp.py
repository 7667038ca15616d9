"""The atrous pyramid of DeepLabV3 (Chen et al., 2017), as in mmsegmentation's ASPPHead."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models.layers import ConvNorm, SeparableConvNorm


class AtrousPyramid(nnx.Module):
    """Convolutions at four dilations and the pooled image, concatenated, and a bottleneck.

    Args:
      in_channels: of the map that it reads.
      channels: of each branch and of the result.
      separable: build the dilated convolutions from depthwise and pointwise ones.
      bottleneck: size of the last convolution's kernel.
      dtype: compute dtype; parameters are float32.
      rngs: source of the initial parameters.
    """

    dilations = (12, 24, 36)

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        separable: bool = False,
        bottleneck: int = 3,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.image_pool = ConvNorm(in_channels, channels, 1, dtype=dtype, rngs=rngs)
        self.atrous = nnx.List([])
        self.atrous.append(ConvNorm(in_channels, channels, 1, dtype=dtype, rngs=rngs))
        for dilation in self.dilations:
            self.atrous.append(
                SeparableConvNorm(in_channels, channels, dilation=dilation, dtype=dtype, rngs=rngs)
                if separable
                else ConvNorm(in_channels, channels, 3, dilation=dilation, dtype=dtype, rngs=rngs)
            )
        self.bottleneck = ConvNorm(
            (len(self.atrous) + 1) * channels, channels, bottleneck, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: Float[Array, "B h w C"], *, train: bool) -> Float[Array, "B h w D"]:
        """Returns the map with what the branches saw around every pixel."""
        pooled = self.image_pool(jnp.mean(x, axis=(1, 2), keepdims=True), train=train)
        maps = [jnp.broadcast_to(pooled, (*x.shape[:3], pooled.shape[3]))]
        maps += [branch(x, train=train) for branch in self.atrous]
        return self.bottleneck(jnp.concatenate(maps, axis=-1), train=train)
