"""The pyramid pooling head of PSPNet (Zhao et al., CVPR 2017)."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models.layers import Classifier, ConvNorm, adaptive_average_pools, resize
from kdjax.models.outputs import Classification, FeatureSpec


class PSPHead(nnx.Module):
    """Pools to 1, 2, 3 and 6 bins, concatenates with the input, 3x3 bottleneck, classifier."""

    bins = (1, 2, 3, 6)

    def __init__(
        self,
        specs: dict[str, FeatureSpec],
        channels: int,
        num_classes: int,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        in_channels = specs["stage4"].channels
        self.channels, self.stride = channels, specs["stage4"].stride
        self.pyramid = nnx.List(
            [ConvNorm(in_channels, channels, 1, dtype=dtype, rngs=rngs) for _ in self.bins]
        )
        self.bottleneck = ConvNorm(
            in_channels + len(self.bins) * channels, channels, 3, dtype=dtype, rngs=rngs
        )
        self.classifier = Classifier(channels, num_classes, dtype=dtype, rngs=rngs)

    def __call__(
        self, features: dict[str, Array], *, train: bool, rngs: nnx.Rngs | None
    ) -> tuple[Classification, Float[Array, "B h w D"]]:
        """Returns the class scores and the map that the classifier reads (before its dropout)."""
        x = features["stage4"]
        size = x.shape[1:3]
        maps = [x]
        pools = adaptive_average_pools(x, self.bins)
        for conv, pooled in zip(self.pyramid, pools, strict=True):
            maps.append(resize(conv(pooled, train=train), size))
        x = self.bottleneck(jnp.concatenate(maps, axis=-1), train=train)
        return self.classifier(x, train=train, rngs=rngs), x
