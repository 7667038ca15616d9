"""The atrous pyramid head of DeepLabV3 (Chen et al., 2017), as mmsegmentation's ASPPHead."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models.layers import Classifier, ConvNorm, SeparableConvNorm
from kdjax.models.outputs import Classification, FeatureSpec


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


class ASPPHead(nnx.Module):
    """The atrous pyramid on the last stage, and the classifier."""

    def __init__(
        self,
        specs: dict[str, FeatureSpec],
        channels: int,
        num_classes: int,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.channels, self.stride = channels, specs["stage4"].stride
        self.pyramid = AtrousPyramid(specs["stage4"].channels, channels, dtype=dtype, rngs=rngs)
        self.classifier = Classifier(channels, num_classes, dtype=dtype, rngs=rngs)

    def __call__(
        self, features: dict[str, Array], *, train: bool, rngs: nnx.Rngs | None
    ) -> tuple[Classification, Float[Array, "B h w D"]]:
        """Returns the class scores and the map that the classifier reads (before its dropout)."""
        x = self.pyramid(features["stage4"], train=train)
        return self.classifier(x, train=train, rngs=rngs), x
