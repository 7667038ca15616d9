"""The head of UPerNet (Xiao et al., ECCV 2018), as mmsegmentation's UPerHead."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models.head import Head
from kdjax.models.layers import ConvNorm, resize
from kdjax.models.outputs import STAGES, FeatureSpec
from kdjax.models.psp import PyramidPooling


class UPerHead(Head):
    """Pyramid pooling on the last stage, a feature pyramid over all four, and the classifier."""

    def __init__(
        self,
        specs: dict[str, FeatureSpec],
        channels: int,
        num_classes: int,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.pyramid = PyramidPooling(specs["stage4"].channels, channels, dtype=dtype, rngs=rngs)
        self.laterals, self.smoothers = nnx.List([]), nnx.List([])
        for name in STAGES[:-1]:
            self.laterals.append(
                ConvNorm(specs[name].channels, channels, 1, dtype=dtype, rngs=rngs)
            )
            self.smoothers.append(ConvNorm(channels, channels, 3, dtype=dtype, rngs=rngs))
        self.fusion = ConvNorm(len(STAGES) * channels, channels, 3, dtype=dtype, rngs=rngs)
        super().__init__(channels, specs["stage1"].stride, num_classes, dtype=dtype, rngs=rngs)

    def read(  # noqa: D102
        self, features: dict[str, Array], *, train: bool, rngs: nnx.Rngs | None
    ) -> Float[Array, "B h w D"]:
        del rngs
        size = features["stage1"].shape[1:3]
        x = self.pyramid(features["stage4"], train=train)
        maps = [resize(x, size)]
        # From coarse to fine: what is coarser is added before a level is smoothed.
        for name, lateral, smoother in reversed(
            list(zip(STAGES[:-1], self.laterals, self.smoothers, strict=True))
        ):
            level = lateral(features[name], train=train)
            x = level + resize(x, level.shape[1:3])
            maps.append(resize(smoother(x, train=train), size))
        return self.fusion(jnp.concatenate(maps[::-1], axis=-1), train=train)
