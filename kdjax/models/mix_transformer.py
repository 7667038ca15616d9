"""The Mix Transformers B0 to B5, backbones of SegFormer (Xie et al., NeurIPS 2021).

The layers are those of mmsegmentation's MixVisionTransformer, on maps [B, H, W, C] instead of
sequences.
"""

import math
from collections.abc import Sequence
from typing import TypedDict, Unpack

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models.layers import (
    Common,
    Conv,
    DepthwiseConv,
    DropPath,
    Features,
    LayerNorm,
    Linear,
    PatchEmbedding,
    Rngs,
    TransformerBlock,
    attend,
    drop_path_rates,
    gelu,
    he_normal,
    normal,
    split_heads,
)
from kdjax.models.outputs import stage_specs
from kdjax.utils.errors import UserError

STRIDES = (4, 2, 2, 2)
PATCH_SIZES = (7, 3, 3, 3)
HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)
EXPANSION = 4

# One attention head has the width divided by this number as channels; blocks per stage.
SIZES: dict[str, tuple[int, tuple[int, int, int, int]]] = {
    "b0": (2, (2, 2, 2, 2)),
    "b1": (1, (2, 2, 2, 2)),
    "b2": (1, (3, 4, 6, 3)),
    "b3": (1, (3, 4, 18, 3)),
    "b4": (1, (3, 8, 27, 3)),
    "b5": (1, (3, 6, 40, 3)),
}


class Epsilons(TypedDict):
    """The epsilons of the layer norms: in general, and right behind a convolution."""

    epsilon: float
    conv_epsilon: float


def depthwise_normal(key: Array, shape: Sequence[int], dtype: jnp.dtype) -> Array:
    """Initializes a depthwise kernel [h, w, 1, C] like `he_normal`; its fan_out is h * w."""
    return normal(key, shape, math.sqrt(2.0 / (shape[0] * shape[1]))).astype(dtype)


class FusedProjection(Linear):
    """One kernel [C, 3C] for queries, keys and values, as in PyTorch's MultiheadAttention."""

    def __init__(self, channels: int, **common: Unpack[Common]):
        super().__init__(channels, 3 * channels, **common)

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Array, "B T C"], source: Float[Array, "B S C"]
    ) -> tuple[Float[Array, "B T C"], Float[Array, "B S C"], Float[Array, "B S C"]]:
        """Returns the queries of `x`, and the keys and values of `source`."""
        assert self.bias is not None
        channels = x.shape[-1]
        kernel, bias = self.kernel[...].astype(x.dtype), self.bias[...].astype(x.dtype)
        query = x @ kernel[:, :channels] + bias[:channels]
        key, value = jnp.split(source @ kernel[:, channels:] + bias[channels:], 2, axis=-1)
        return query, key, value


class Reduction(nnx.Module):
    """A convolution with windows of `size` that do not overlap, then layer norm."""

    def __init__(self, channels: int, size: int, *, epsilon: float, **common: Unpack[Common]):
        # Unpadded as in PyTorch, which may leave out the last rows and columns.
        self.conv = nnx.Conv(
            channels,
            channels,
            (size, size),
            strides=size,
            padding="VALID",
            kernel_init=he_normal,
            **common,
        )
        self.norm = LayerNorm(channels, epsilon=epsilon, **common)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        """Reduces the map, which must have at least `size` rows and columns."""
        return self.norm(self.conv(x))


class EfficientAttention(nnx.Module):
    """Attention of every position to a map that a convolution made `reduction` times smaller."""

    def __init__(
        self,
        channels: int,
        heads: int,
        reduction: int,
        *,
        epsilon: float,
        **common: Unpack[Common],
    ):
        self.heads = heads
        self.in_projection = FusedProjection(channels, **common)
        self.out_projection = Linear(channels, channels, **common)
        self.reduction = (
            Reduction(channels, reduction, epsilon=epsilon, **common) if reduction > 1 else None
        )

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Attends."""
        batch, _, _, channels = x.shape
        source = x if self.reduction is None else self.reduction(x)
        projected = self.in_projection(
            x.reshape(batch, -1, channels), source.reshape(batch, -1, channels)
        )
        query, key, value = (split_heads(y, self.heads) for y in projected)
        return self.out_projection(attend(query, key, value)).reshape(x.shape)


class MixFFN(nnx.Module):
    """Expands the channels, convolves 3x3 depthwise, applies GELU, and contracts the channels."""

    def __init__(self, channels: int, **common: Unpack[Common]):
        hidden = EXPANSION * channels
        self.expand = Conv(channels, hidden, 1, bias=True, **common)
        self.depthwise = DepthwiseConv(hidden, 3, bias=True, kernel_init=depthwise_normal, **common)
        self.contract = Conv(hidden, channels, 1, bias=True, **common)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Applies the four."""
        return self.contract(gelu(self.depthwise(self.expand(x))))


class MixBlock(TransformerBlock):
    """Efficient attention and Mix-FFN."""

    def __init__(
        self,
        channels: int,
        stage: int,
        epsilons: Epsilons,
        drop_path: float,
        **common: Unpack[Common],
    ):
        epsilon, conv_epsilon = epsilons["epsilon"], epsilons["conv_epsilon"]
        self.norm1 = LayerNorm(channels, epsilon=epsilon, **common)
        self.attention = EfficientAttention(
            channels, HEADS[stage], REDUCTIONS[stage], epsilon=conv_epsilon, **common
        )
        self.norm2 = LayerNorm(channels, epsilon=epsilon, **common)
        self.ffn = MixFFN(channels, **common)
        self.drop_path = DropPath(drop_path)


class MixStage(nnx.Module):
    """A patch embedding, blocks, and a layer norm."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stage: int,
        epsilons: Epsilons,
        drop_paths: Sequence[float],
        **common: Unpack[Common],
    ):
        size, stride = PATCH_SIZES[stage], STRIDES[stage]
        projection = Conv(in_channels, channels, size, stride=stride, bias=True, **common)
        self.embedding = PatchEmbedding(projection, epsilon=epsilons["conv_epsilon"], **common)
        self.blocks = nnx.List(
            [MixBlock(channels, stage, epsilons, rate, **common) for rate in drop_paths]
        )
        self.norm = LayerNorm(channels, epsilon=epsilons["epsilon"], **common)

    def __call__(
        self, x: Float[Array, "B H W C"], *, train: bool, rngs: Rngs
    ) -> Float[Array, "B h w D"]:
        """Runs the stage."""
        x = self.embedding(x)
        for block in self.blocks:
            x = block(x, train=train, rngs=rngs)
        return self.norm(x)


class MixTransformer(nnx.Module):
    """The hierarchical backbone of SegFormer, mmsegmentation's MixVisionTransformer.

    Args:
      size: "b0" to "b5".
      width: an even number; 64 is the published network. An attention head has `width` channels,
        half of that in B0, and the stages have 1, 2, 5, and 8 heads.
      epsilon: of the layer norms.
      conv_epsilon: of the layer norms right behind a convolution.
      drop_path: drop rate of the last block in training. The rate rises linearly from 0.
      in_channels: the bands of the images.
      **common: see `Common`.
    """

    # On smaller images, a reduced map has no rows.
    smallest = 29

    def __init__(
        self,
        size: str,
        *,
        width: int = 64,
        epsilon: float = 1e-6,
        conv_epsilon: float = 1e-6,
        drop_path: float = 0.1,
        in_channels: int = 3,
        **common: Unpack[Common],
    ):
        divisor, depths = SIZES[size]
        channels = [width // divisor * heads for heads in HEADS]
        self.feature_specs = stage_specs(channels)
        epsilons = Epsilons(epsilon=epsilon, conv_epsilon=conv_epsilon)
        self.stages = nnx.List([])
        for stage, rates in enumerate(drop_path_rates(drop_path, depths)):
            incoming = channels[stage - 1] if stage else in_channels
            self.stages.append(
                MixStage(incoming, channels[stage], stage, epsilons, rates, **common)
            )

    def __call__(self, images: Array, *, train: bool, rngs: Rngs) -> Features:
        """Returns the normalized outputs of the four stages as "stage1" to "stage4".

        Raises:
          UserError: for images with a side below 29.
        """
        height, width = images.shape[1:3]
        if min(height, width) < self.smallest:
            raise UserError(
                f"images are {height}x{width}; SegFormer needs sides of at least {self.smallest}"
            )
        x, features = images, {}
        for index, stage in enumerate(self.stages):
            x = stage(x, train=train, rngs=rngs)
            features[f"stage{index + 1}"] = x
        return features
