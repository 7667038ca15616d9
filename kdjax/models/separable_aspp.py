"""The head of DeepLabV3+ (Chen et al., ECCV 2018): a separable atrous pyramid and a decoder."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models.aspp import AtrousPyramid
from kdjax.models.head import Head
from kdjax.models.layers import ConvNorm, SeparableConvNorm, resize
from kdjax.models.outputs import FeatureSpec


class SeparableASPPHead(Head):
    """The pyramid on the last stage, refined beside the first stage at its resolution.

    As mmsegmentation's DepthwiseSeparableASPPHead. The first stage enters through 3/32 of the
    head's channels: 48 of 512 and 12 of 128, as in its configs.
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
        self.pyramid = AtrousPyramid(
            specs["stage4"].channels, channels, separable=True, dtype=dtype, rngs=rngs
        )
        fine = max(1, 3 * channels // 32)
        self.fine = ConvNorm(specs["stage1"].channels, fine, 1, dtype=dtype, rngs=rngs)
        self.decoder = nnx.List(
            [
                SeparableConvNorm(channels + fine, channels, dtype=dtype, rngs=rngs),
                SeparableConvNorm(channels, channels, dtype=dtype, rngs=rngs),
            ]
        )
        super().__init__(channels, specs["stage1"].stride, num_classes, dtype=dtype, rngs=rngs)

    def read(  # noqa: D102
        self, features: dict[str, Array], *, train: bool, rngs: nnx.Rngs | None
    ) -> Float[Array, "B h w D"]:
        del rngs
        x = self.pyramid(features["stage4"], train=train)
        fine = self.fine(features["stage1"], train=train)
        x = jnp.concatenate([resize(x, fine.shape[1:3]), fine], axis=-1)
        for conv in self.decoder:
            x = conv(x, train=train)
        return x
