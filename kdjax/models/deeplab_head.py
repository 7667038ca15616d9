"""The head of torchvision's DeepLabV3, which differs from mmsegmentation's."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models.aspp import AtrousPyramid
from kdjax.models.layers import Classifier, ConvNorm
from kdjax.models.outputs import Classification, FeatureSpec


class DeepLabHead(nnx.Module):
    """The atrous pyramid with a 1x1 bottleneck, one more 3x3 convolution, and the classifier.

    As torchvision's class of that name. `channels` are mmsegmentation's; it has half of them.
    """

    def __init__(
        self,
        specs: dict[str, FeatureSpec],
        channels: int,
        num_classes: int,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        channels //= 2
        self.channels, self.stride = channels, specs["stage4"].stride
        self.pyramid = AtrousPyramid(
            specs["stage4"].channels, channels, bottleneck=1, dtype=dtype, rngs=rngs
        )
        self.dropout = nnx.Dropout(0.5)
        self.refine = ConvNorm(channels, channels, 3, dtype=dtype, rngs=rngs)
        self.classifier = Classifier(channels, num_classes, dropout=0.0, dtype=dtype, rngs=rngs)

    def __call__(
        self, features: dict[str, Array], *, train: bool, rngs: nnx.Rngs | None
    ) -> tuple[Classification, Float[Array, "B h w D"]]:
        """Returns the class scores and the map that the classifier reads."""
        x = self.pyramid(features["stage4"], train=train)
        x = self.dropout(x, deterministic=not train, rngs=rngs)
        x = self.refine(x, train=train)
        return self.classifier(x, train=train, rngs=rngs), x
