"""The all-MLP head of SegFormer (Xie et al., NeurIPS 2021), with either kind of projection."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models.head import Head
from kdjax.models.layers import Conv, ConvNorm, resize
from kdjax.models.outputs import STAGES, FeatureSpec


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


class MLPHead(Head):
    """Projects each stage, resizes to the first one's map, concatenates, fuses, classifies.

    Args:
      specs: the features of the backbone.
      channels: of the projections and of the fused map.
      num_classes: K.
      projection: builds what projects a stage, before the resizing.
      dropout: before the classifier.
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
        dropout: float = 0.1,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.projections = nnx.List(
            [
                projection(specs[stage].channels, channels, dtype=dtype, rngs=rngs)
                for stage in STAGES
            ]
        )
        self.fuse = ConvNorm(len(STAGES) * channels, channels, 1, dtype=dtype, rngs=rngs)
        stride = specs[STAGES[0]].stride
        super().__init__(channels, stride, num_classes, dropout=dropout, dtype=dtype, rngs=rngs)

    def read(  # noqa: D102
        self, features: dict[str, Array], *, train: bool, rngs: nnx.Rngs | None
    ) -> Float[Array, "B h w D"]:
        del rngs
        size = features[STAGES[0]].shape[1:3]
        maps = [
            resize(projection(features[stage], train=train), size)
            for projection, stage in zip(self.projections, STAGES, strict=True)
        ]
        return self.fuse(jnp.concatenate(maps, axis=-1), train=train)
