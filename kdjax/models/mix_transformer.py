"""The Mix Transformers B0 to B5, backbones of SegFormer (Xie et al., NeurIPS 2021).

The source of every layer is mmsegmentation's MixVisionTransformer; maps stay [B, H, W, C] where
that one keeps sequences.
"""

import math
from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models.layers import (
    Conv,
    DepthwiseConv,
    DropPath,
    LayerNorm,
    Linear,
    attend,
    drop_path_rates,
    gelu,
    he_normal,
    normal,
    split_heads,
)
from kdjax.models.outputs import FeatureSpec, stage_specs
from kdjax.utils.errors import UserError

STRIDES = (4, 2, 2, 2)
PATCH_SIZES = (7, 3, 3, 3)
HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)
EXPANSION = 4

# What the width is divided by for the channels of one attention head, and blocks per stage.
SIZES: dict[str, tuple[int, tuple[int, int, int, int]]] = {
    "b0": (2, (2, 2, 2, 2)),
    "b1": (1, (2, 2, 2, 2)),
    "b2": (1, (3, 4, 6, 3)),
    "b3": (1, (3, 4, 18, 3)),
    "b4": (1, (3, 8, 27, 3)),
    "b5": (1, (3, 6, 40, 3)),
}


def depthwise_normal(key: Array, shape: Sequence[int], dtype: jnp.dtype) -> Array:
    """Initialises a depthwise kernel [h, w, 1, C] as `he_normal`: its fan_out is h * w."""
    return normal(key, shape, math.sqrt(2.0 / (shape[0] * shape[1]))).astype(dtype)


class PatchEmbedding(nnx.Module):
    """A strided convolution whose windows overlap, then layer norm."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        size: int,
        stride: int,
        *,
        epsilon: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.projection = Conv(
            in_channels, channels, size, stride=stride, bias=True, dtype=dtype, rngs=rngs
        )
        self.norm = LayerNorm(channels, epsilon=epsilon, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        """Embeds the patches."""
        return self.norm(self.projection(x))


class FusedProjection(Linear):
    """One kernel [C, 3C] for queries, keys and values, as in PyTorch's MultiheadAttention."""

    def __init__(self, channels: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        super().__init__(channels, 3 * channels, dtype=dtype, rngs=rngs)

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
    """A convolution whose windows of `size` do not overlap, then layer norm."""

    def __init__(
        self, channels: int, size: int, *, epsilon: float, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        # Unpadded as in PyTorch, so that the last rows and columns may stay unread.
        self.conv = nnx.Conv(
            channels,
            channels,
            (size, size),
            strides=size,
            padding="VALID",
            kernel_init=he_normal,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = LayerNorm(channels, epsilon=epsilon, dtype=dtype, rngs=rngs)

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
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.heads = heads
        self.in_projection = FusedProjection(channels, dtype=dtype, rngs=rngs)
        self.out_projection = Linear(channels, channels, dtype=dtype, rngs=rngs)
        self.reduction = (
            Reduction(channels, reduction, epsilon=epsilon, dtype=dtype, rngs=rngs)
            if reduction > 1
            else None
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
    """Expands the channels, mixes 3x3 neighbours depthwise, GELU, contracts."""

    def __init__(self, channels: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        hidden = EXPANSION * channels
        self.expand = Conv(channels, hidden, 1, bias=True, dtype=dtype, rngs=rngs)
        self.depthwise = DepthwiseConv(
            hidden, 3, bias=True, kernel_init=depthwise_normal, dtype=dtype, rngs=rngs
        )
        self.contract = Conv(hidden, channels, 1, bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Applies the four."""
        return self.contract(gelu(self.depthwise(self.expand(x))))


class MixBlock(nnx.Module):
    """Attention and Mix-FFN, each behind a layer norm and inside a shortcut."""

    def __init__(
        self,
        channels: int,
        heads: int,
        reduction: int,
        *,
        epsilon: float,
        conv_epsilon: float,
        drop_path: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.norm1 = LayerNorm(channels, epsilon=epsilon, dtype=dtype, rngs=rngs)
        self.attention = EfficientAttention(
            channels, heads, reduction, epsilon=conv_epsilon, dtype=dtype, rngs=rngs
        )
        self.norm2 = LayerNorm(channels, epsilon=epsilon, dtype=dtype, rngs=rngs)
        self.ffn = MixFFN(channels, dtype=dtype, rngs=rngs)
        self.drop_path = DropPath(drop_path)

    def __call__(
        self, x: Float[Array, "B H W C"], *, train: bool, rngs: nnx.Rngs | None
    ) -> Float[Array, "B H W C"]:
        """Adds both branches; `train` drops each for some of the images."""
        drop_path = partial(self.drop_path, deterministic=not train, rngs=rngs)
        x = x + drop_path(self.attention(self.norm1(x)))
        return x + drop_path(self.ffn(self.norm2(x)))


class MixStage(nnx.Module):
    """A patch embedding, its blocks, and the layer norm of what they return."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        index: int,
        *,
        epsilon: float,
        conv_epsilon: float,
        drop_paths: Sequence[float],
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.embedding = PatchEmbedding(
            in_channels,
            channels,
            PATCH_SIZES[index],
            STRIDES[index],
            epsilon=conv_epsilon,
            dtype=dtype,
            rngs=rngs,
        )
        self.blocks = nnx.List(
            [
                MixBlock(
                    channels,
                    HEADS[index],
                    REDUCTIONS[index],
                    epsilon=epsilon,
                    conv_epsilon=conv_epsilon,
                    drop_path=rate,
                    dtype=dtype,
                    rngs=rngs,
                )
                for rate in drop_paths
            ]
        )
        self.norm = LayerNorm(channels, epsilon=epsilon, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B H W C"], *, train: bool, rngs: nnx.Rngs | None
    ) -> Float[Array, "B h w D"]:
        """Runs the stage."""
        x = self.embedding(x)
        for block in self.blocks:
            x = block(x, train=train, rngs=rngs)
        return self.norm(x)


class MixTransformer(nnx.Module):
    """The hierarchical backbone of SegFormer; mmsegmentation's MixVisionTransformer.

    Args:
      size: "b0" to "b5".
      width: 64 is the published network. A head has `width` channels (half of that in B0), and
        the stages have 1, 2, 5 and 8 heads, so that every even width divides.
      epsilon: of the layer norms.
      conv_epsilon: of those right behind a convolution, where it differs.
      drop_path: rate of the last block in training; it rises linearly from 0 in the first.
      dtype: compute dtype; parameters are float32.
      rngs: source of the initial parameters.
    """

    # Smaller images leave a reduced map without a row.
    smallest = 29

    def __init__(
        self,
        size: str,
        *,
        width: int = 64,
        epsilon: float = 1e-6,
        conv_epsilon: float | None = None,
        drop_path: float = 0.1,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        divisor, depths = SIZES[size]
        self.stage_channels = tuple(width // divisor * heads for heads in HEADS)
        self.stages = nnx.List([])
        in_channels = 3
        rates = drop_path_rates(drop_path, depths)
        for index, channels in enumerate(self.stage_channels):
            self.stages.append(
                MixStage(
                    in_channels,
                    channels,
                    index,
                    epsilon=epsilon,
                    conv_epsilon=epsilon if conv_epsilon is None else conv_epsilon,
                    drop_paths=rates[index],
                    dtype=dtype,
                    rngs=rngs,
                )
            )
            in_channels = channels

    @property
    def feature_specs(self) -> dict[str, FeatureSpec]:
        """The maps that a call returns, by name."""
        return stage_specs(self.stage_channels)

    def __call__(
        self, images: Float[Array, "B H W 3"], *, train: bool, rngs: nnx.Rngs | None
    ) -> dict[str, Float[Array, "B h w C"]]:
        """Returns the normalised outputs of the four stages as "stage1" to "stage4".

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
