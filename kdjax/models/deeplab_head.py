"""The head of torchvision's and CIRKD's DeepLabV3, which differs from mmsegmentation's."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models.aspp import AtrousPyramid
from kdjax.models.head import Head
from kdjax.models.layers import ConvNorm
from kdjax.models.outputs import FeatureSpec


class DeepLabHead(Head):
    """The atrous pyramid with a 1x1 bottleneck, one more 3x3 convolution, and the classifier.

    As torchvision's class of that name, which has no dropout before the classifier; CIRKD's has.
    """

    def __init__(
        self,
        specs: dict[str, FeatureSpec],
        channels: int,
        num_classes: int,
        *,
        dropout: float = 0.0,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        last = specs["stage4"]
        self.pyramid = AtrousPyramid(last.channels, channels, bottleneck=1, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)
        self.refine = ConvNorm(channels, channels, 3, dtype=dtype, rngs=rngs)
        super().__init__(
            channels, last.stride, num_classes, dropout=dropout, dtype=dtype, rngs=rngs
        )

    def read(  # noqa: D102
        self, features: dict[str, Array], *, train: bool, rngs: nnx.Rngs | None
    ) -> Float[Array, "B h w D"]:
        x = self.pyramid(features["stage4"], train=train)
        x = self.dropout(x, deterministic=not train, rngs=rngs)
        return self.refine(x, train=train)
