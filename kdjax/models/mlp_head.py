"""The all-MLP head of SegFormer, as mmsegmentation's SegformerHead (Xie et al., NeurIPS 2021)."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models.layers import Classifier, ConvNorm, resize
from kdjax.models.outputs import Classification, FeatureSpec

STAGES = ("stage1", "stage2", "stage3", "stage4")


class MLPHead(nnx.Module):
    """Projects each stage, resizes to the first one's map, concatenates, fuses, classifies.

    Each projection is a 1x1 convolution with batch norm and ReLU, taken before the resizing.
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
        self.channels, self.stride = channels, specs[STAGES[0]].stride
        self.projections = nnx.List(
            [
                ConvNorm(specs[stage].channels, channels, 1, dtype=dtype, rngs=rngs)
                for stage in STAGES
            ]
        )
        self.fuse = ConvNorm(len(STAGES) * channels, channels, 1, dtype=dtype, rngs=rngs)
        self.classifier = Classifier(channels, num_classes, dtype=dtype, rngs=rngs)

    def __call__(
        self, features: dict[str, Array], *, train: bool, rngs: nnx.Rngs | None
    ) -> tuple[Classification, Float[Array, "B h w D"]]:
        """Returns the class scores and the map that the classifier reads (before its dropout)."""
        size = features[STAGES[0]].shape[1:3]
        maps = [
            resize(projection(features[stage], train=train), size)
            for projection, stage in zip(self.projections, STAGES, strict=True)
        ]
        x = self.fuse(jnp.concatenate(maps, axis=-1), train=train)
        return self.classifier(x, train=train, rngs=rngs), x
