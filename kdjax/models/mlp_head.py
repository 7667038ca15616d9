"""The all-MLP head of SegFormer (Xie et al., NeurIPS 2021), with either kind of projection."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models.layers import Classifier, Conv, ConvNorm, resize
from kdjax.models.outputs import Classification, FeatureSpec

STAGES = ("stage1", "stage2", "stage3", "stage4")


class NormedProjection(ConvNorm):
    """A 1x1 convolution with batch norm and ReLU, as in mmsegmentation's SegformerHead."""

    def __init__(self, in_channels: int, channels: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        super().__init__(in_channels, channels, 1, dtype=dtype, rngs=rngs)


class LinearProjection(nnx.Module):
    """A linear map of every pixel, as in the paper, its authors' code and HuggingFace's."""

    def __init__(self, in_channels: int, channels: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.conv = Conv(in_channels, channels, 1, bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B H W D"]:
        """Maps; training changes nothing."""
        del train
        return self.conv(x)


class MLPHead(nnx.Module):
    """Projects each stage, resizes to the first one's map, concatenates, fuses, classifies.

    Args:
      specs: the features of the backbone.
      channels: of the projections and of the fused map.
      num_classes: K.
      projection: builds what projects a stage, before the resizing.
      dtype: compute dtype; parameters are float32.
      rngs: source of the initial parameters.
    """

    def __init__(
        self,
        specs: dict[str, FeatureSpec],
        channels: int,
        num_classes: int,
        *,
        projection: Callable[..., NormedProjection | LinearProjection] = NormedProjection,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.channels, self.stride = channels, specs[STAGES[0]].stride
        self.projections = nnx.List(
            [
                projection(specs[stage].channels, channels, dtype=dtype, rngs=rngs)
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
