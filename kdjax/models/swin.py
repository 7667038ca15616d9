"""Swin Transformer, as mmsegmentation's SwinTransformer builds it (Liu et al., ICCV 2021)."""

from typing import Unpack

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from kdjax.models.layers import (
    Common,
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
    linear_normal,
    split_heads,
)
from kdjax.models.outputs import stage_specs

WINDOW = 7
SHIFT = WINDOW // 2
PATCH_SIZE = 4
DEPTHS = (2, 2, 6, 2)
HEADS = (3, 6, 12, 24)
EXPANSION = 4
EPSILON = 1e-5
# Added to the attention scores of positions that are neighbors only because of the shift.
MASKED = -100.0


def relative_position_index() -> Int[np.ndarray, "T T"]:
    """Returns the row of the bias table for every pair of positions in a window, T = 49."""
    rows, columns = np.divmod(np.arange(WINDOW**2), WINDOW)
    span = 2 * WINDOW - 1
    down = rows[:, None] - rows + WINDOW - 1
    right = columns[:, None] - columns + WINDOW - 1
    return down * span + right


def shifted_mask(height: int, width: int) -> Float[np.ndarray, "windows 1 T T"]:
    """Returns the mask that keeps positions of a window apart if they are no neighbors.

    A cyclic shift brings the first rows and columns next to the last ones.

    Args:
      height: rows of the padded map, a multiple of the window.
      width: its columns.
    """

    def parts(size: int) -> np.ndarray:
        position = np.arange(size)
        return (position >= size - WINDOW).astype(int) + (position >= size - SHIFT)

    regions = 3 * parts(height)[:, None] + parts(width)
    regions = to_windows(regions[None, :, :, None])[0, :, :, 0]
    apart = regions[:, None, :] != regions[:, :, None]
    return np.where(apart, MASKED, 0.0).astype(np.float32)[:, None]


def pad_to_multiple(x: Float[Array, "B H W C"], size: int) -> Float[Array, "B h w C"]:
    """Adds rows and columns of zeros at the end, up to multiples of `size`."""
    height, width = x.shape[1:3]
    return jnp.pad(x, ((0, 0), (0, -height % size), (0, -width % size), (0, 0)))


def to_windows(x):
    """Cuts a map [B, H, W, C] into windows [B, windows, T, C]."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // WINDOW, WINDOW, width // WINDOW, WINDOW, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, WINDOW**2, channels)


def from_windows(
    x: Float[Array, "B windows T C"], height: int, width: int
) -> Float[Array, "B H W C"]:
    """Joins windows to a map; the inverse of `to_windows`."""
    batch, _, _, channels = x.shape
    x = x.reshape(batch, height // WINDOW, width // WINDOW, WINDOW, WINDOW, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height, width, channels)


class WindowAttention(nnx.Module):
    """Attention inside windows of 7 x 7, which a shifted block moves by 3 rows and columns."""

    def __init__(self, channels: int, heads: int, *, shifted: bool, **common: Unpack[Common]):
        self.heads, self.shifted = heads, shifted
        table = ((2 * WINDOW - 1) ** 2, heads)
        self.relative_position_bias_table = nnx.Param(
            linear_normal(common["rngs"].params(), table, jnp.dtype("float32"))
        )
        self.in_projection = Linear(channels, 3 * channels, **common)
        self.out_projection = Linear(channels, channels, **common)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Attends, also to the padding of the last windows, as in mmsegmentation."""
        height, width = x.shape[1:3]
        x = pad_to_multiple(x, WINDOW)
        padded_height, padded_width = x.shape[1:3]
        table = self.relative_position_bias_table[...]
        bias = table[relative_position_index()].transpose(2, 0, 1)
        if self.shifted:
            x = jnp.roll(x, (-SHIFT, -SHIFT), axis=(1, 2))
            bias = bias + shifted_mask(padded_height, padded_width)
        projected = jnp.split(self.in_projection(to_windows(x)), 3, axis=-1)
        query, key, value = (split_heads(y, self.heads) for y in projected)
        x = self.out_projection(attend(query, key, value, bias))
        x = from_windows(x, padded_height, padded_width)
        if self.shifted:
            x = jnp.roll(x, (SHIFT, SHIFT), axis=(1, 2))
        return x[:, :height, :width]


class SwinBlock(TransformerBlock):
    """Window attention and a two-layer perceptron."""

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        shifted: bool,
        drop_path: float,
        **common: Unpack[Common],
    ):
        hidden = EXPANSION * channels
        self.norm1 = LayerNorm(channels, epsilon=EPSILON, **common)
        self.attention = WindowAttention(channels, heads, shifted=shifted, **common)
        self.norm2 = LayerNorm(channels, epsilon=EPSILON, **common)
        self.expand = Linear(channels, hidden, **common)
        self.contract = Linear(hidden, channels, **common)
        self.drop_path = DropPath(drop_path)

    def ffn(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Applies the perceptron."""
        return self.contract(gelu(self.expand(x)))


class PatchMerging(nnx.Module):
    """Halves a map: concatenates 2 x 2 neighbors, layer norm, a linear map to twice the channels.

    The four values of one channel are next to each other, the order of PyTorch's Unfold. The
    authors' code keeps the channels of one neighbor together; mmsegmentation reorders its weights.
    """

    def __init__(self, channels: int, **common: Unpack[Common]):
        self.norm = LayerNorm(4 * channels, epsilon=EPSILON, **common)
        self.reduction = Linear(4 * channels, 2 * channels, bias=False, **common)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        """Merges; an odd map is padded with a row or column of zeros at the end."""
        x = pad_to_multiple(x, 2)
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
        x = x.transpose(0, 1, 3, 5, 2, 4).reshape(batch, height // 2, width // 2, 4 * channels)
        return self.reduction(self.norm(x))


class SwinTransformer(nnx.Module):
    """Swin-T: windows of 7 x 7; two, two, six, and two blocks, every second one shifted.

    Args:
      width: an even number; 64 is the published network. An attention head has half of it as
        channels, and the stages have 3, 6, 12, and 24 heads.
      drop_path: drop rate of the last block in training. The rate rises linearly from 0.
      in_channels: the bands of the images.
      **common: see `Common`.
    """

    def __init__(
        self,
        *,
        width: int = 64,
        drop_path: float = 0.3,
        in_channels: int = 3,
        **common: Unpack[Common],
    ):
        channels = [width // 2 * heads for heads in HEADS]
        self.feature_specs = stage_specs(channels)
        patch = (PATCH_SIZE, PATCH_SIZE)
        projection = nnx.Conv(
            in_channels, channels[0], patch, strides=patch, padding="VALID", **common
        )
        self.embedding = PatchEmbedding(projection, epsilon=EPSILON, **common)
        self.stages = nnx.List([])
        for c, heads, rates in zip(
            channels, HEADS, drop_path_rates(drop_path, DEPTHS), strict=True
        ):
            self.stages.append(
                nnx.List(
                    [
                        SwinBlock(c, heads, shifted=i % 2 == 1, drop_path=rate, **common)
                        for i, rate in enumerate(rates)
                    ]
                )
            )
        self.mergings = nnx.List([PatchMerging(c, **common) for c in channels[:-1]])
        self.norms = nnx.List([LayerNorm(c, epsilon=EPSILON, **common) for c in channels])

    def __call__(self, images: Array, *, train: bool, rngs: Rngs) -> Features:
        """Returns the normalized outputs of the four stages as "stage1" to "stage4"."""
        x, features = self.embedding(pad_to_multiple(images, PATCH_SIZE)), {}
        for index, (blocks, norm) in enumerate(zip(self.stages, self.norms, strict=True)):
            if index > 0:
                x = self.mergings[index - 1](x)
            for block in blocks:
                x = block(x, train=train, rngs=rngs)
            features[f"stage{index + 1}"] = norm(x)
        return features
