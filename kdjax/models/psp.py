"""The pyramid pooling head of PSPNet (Zhao et al., CVPR 2017), as mmsegmentation's PSPHead."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models.layers import Classifier, ConvNorm, adaptive_average_pools, resize
from kdjax.models.outputs import Classification, FeatureSpec


class PyramidPooling(nnx.Module):
    """Pools to 1, 2, 3 and 6 bins, concatenates with the input, 3x3 bottleneck."""

    bins = (1, 2, 3, 6)

    def __init__(self, in_channels: int, channels: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.branches = nnx.List(
            [ConvNorm(in_channels, channels, 1, dtype=dtype, rngs=rngs) for _ in self.bins]
        )
        self.bottleneck = ConvNorm(
            in_channels + len(self.bins) * channels, channels, 3, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: Float[Array, "B h w C"], *, train: bool) -> Float[Array, "B h w D"]:
        """Returns the map with what was pooled around every pixel."""
        maps = [x]
        pools = adaptive_average_pools(x, self.bins)
        for conv, pooled in zip(self.branches, pools, strict=True):
            maps.append(resize(conv(pooled, train=train), x.shape[1:3]))
        return self.bottleneck(jnp.concatenate(maps, axis=-1), train=train)


class PSPHead(nnx.Module):
    """Pyramid pooling of the last stage, and the classifier."""

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
        self.pyramid = PyramidPooling(specs["stage4"].channels, channels, dtype=dtype, rngs=rngs)
        self.classifier = Classifier(channels, num_classes, dtype=dtype, rngs=rngs)

    def __call__(
        self, features: dict[str, Array], *, train: bool, rngs: nnx.Rngs | None
    ) -> tuple[Classification, Float[Array, "B h w D"]]:
        """Returns the class scores and the map that the classifier reads (before its dropout)."""
        x = self.pyramid(features["stage4"], train=train)
        return self.classifier(x, train=train, rngs=rngs), x
