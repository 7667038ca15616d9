"""The plain convolutional head, used as the auxiliary head on stage 3 (Zhao et al., CVPR 2017)."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models.layers import Classifier, ConvNorm
from kdjax.models.outputs import Classification, FeatureSpec


class FCNHead(nnx.Module):
    """One 3x3 convolution and the classifier."""

    def __init__(
        self,
        specs: dict[str, FeatureSpec],
        channels: int,
        num_classes: int,
        *,
        source: str,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.source = source
        self.channels, self.stride = channels, specs[source].stride
        self.conv = ConvNorm(specs[source].channels, channels, 3, dtype=dtype, rngs=rngs)
        self.classifier = Classifier(channels, num_classes, dtype=dtype, rngs=rngs)

    def __call__(
        self, features: dict[str, Array], *, train: bool, rngs: nnx.Rngs | None
    ) -> tuple[Classification, Float[Array, "B h w D"]]:
        """Returns the class scores and the map that the classifier reads (before its dropout)."""
        x = self.conv(features[self.source], train=train)
        return self.classifier(x, train=train, rngs=rngs), x
