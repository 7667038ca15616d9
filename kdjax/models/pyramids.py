"""Modules that look at a map at several scales: PSPNet's pooling and DeepLab's dilations."""

from collections.abc import Callable, Sequence
from typing import Unpack

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models.layers import Common, ConvNorm, SeparableConvNorm, resize


def pooling_matrix(size: int, bins: int) -> np.ndarray:
    """Returns the [bins, size] averages of PyTorch's adaptive pooling (bins may overlap)."""
    matrix = np.zeros((bins, size), np.float32)
    for row in range(bins):
        start, stop = row * size // bins, -(-(row + 1) * size // bins)
        matrix[row, start:stop] = 1.0 / (stop - start)
    return matrix


def adaptive_average_pools(
    x: Float[Array, "B H W C"], bins: Sequence[int]
) -> list[Float[Array, "B n n C"]]:
    """Pools to n x n for every n of `bins`, reading the map once."""
    height, width = x.shape[1:3]
    rows = jnp.asarray(np.concatenate([pooling_matrix(height, n) for n in bins]), x.dtype)
    pooled_rows = jnp.einsum("nh,bhwc->bnwc", rows, x)
    pools, start = [], 0
    for n in bins:
        columns = jnp.asarray(pooling_matrix(width, n), x.dtype)
        pools.append(jnp.einsum("mw,bnwc->bnmc", columns, pooled_rows[:, start : start + n]))
        start += n
    return pools


class PyramidPooling(nnx.Module):
    """Pools to 1, 2, 3, and 6 bins, concatenates with the input, and applies a 3x3 bottleneck.

    Args:
      in_channels: of the input.
      channels: of the result.
      quarter: give each pooled map a quarter of the input's channels, instead of `channels`.
      activation: after every batch norm.
      align_corners: how the pooled maps are resized.
      **common: see `Common`.
    """

    bins = (1, 2, 3, 6)

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        quarter: bool = False,
        activation: Callable[[Array], Array] = nnx.relu,
        align_corners: bool = False,
        **common: Unpack[Common],
    ):
        self.align_corners = align_corners
        pooled = in_channels // 4 if quarter else channels
        self.branches = nnx.List(
            [ConvNorm(in_channels, pooled, 1, activation=activation, **common) for _ in self.bins]
        )
        joined = in_channels + len(self.bins) * pooled
        self.bottleneck = ConvNorm(joined, channels, 3, activation=activation, **common)

    def __call__(self, x: Float[Array, "B h w C"], *, train: bool) -> Float[Array, "B h w D"]:
        """Applies the pyramid."""
        maps = [x]
        pools = adaptive_average_pools(x, self.bins)
        for conv, pooled in zip(self.branches, pools, strict=True):
            pooled = conv(pooled, train=train)
            maps.append(resize(pooled, x.shape[1:3], align_corners=self.align_corners))
        return self.bottleneck(jnp.concatenate(maps, axis=-1), train=train)


class AtrousPyramid(nnx.Module):
    """A 1x1 convolution, dilated convolutions, and the pooled image, then a bottleneck.

    Args:
      in_channels: of the input.
      channels: of each branch and of the result.
      separable: use separable convolutions for the dilated ones.
      dilations: the default is for a backbone of output stride 8; half of it is for 16.
      bottleneck: kernel size of the last convolution.
      **common: see `Common`.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        separable: bool = False,
        dilations: Sequence[int] = (12, 24, 36),
        bottleneck: int = 3,
        **common: Unpack[Common],
    ):
        self.image_pool = ConvNorm(in_channels, channels, 1, **common)
        self.atrous = nnx.List([])
        self.atrous.append(ConvNorm(in_channels, channels, 1, **common))
        for dilation in dilations:
            self.atrous.append(
                SeparableConvNorm(in_channels, channels, dilation=dilation, **common)
                if separable
                else ConvNorm(in_channels, channels, 3, dilation=dilation, **common)
            )
        joined = (len(self.atrous) + 1) * channels
        self.bottleneck = ConvNorm(joined, channels, bottleneck, **common)

    def __call__(self, x: Float[Array, "B h w C"], *, train: bool) -> Float[Array, "B h w D"]:
        """Applies the pyramid."""
        pooled = self.image_pool(jnp.mean(x, axis=(1, 2), keepdims=True), train=train)
        maps = [jnp.broadcast_to(pooled, (*x.shape[:3], pooled.shape[3]))]
        maps += [branch(x, train=train) for branch in self.atrous]
        return self.bottleneck(jnp.concatenate(maps, axis=-1), train=train)
