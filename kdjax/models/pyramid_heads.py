"""Pyramids over places and over stages, and the heads that are built of them."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models.heads import Head
from kdjax.models.layers import ConvNorm, SeparableConvNorm, resize
from kdjax.models.outputs import STAGES, FeatureSpec


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
    """Pools to 1, 2, 3 and 6 bins, concatenates with the input, 3x3 bottleneck.

    Args:
      in_channels: of the map that it reads.
      channels: of the result, and of each pooled map where nothing else is said.
      quarter: whether the pooled maps have a quarter of the input's channels each.
      activation: behind every batch norm.
      align_corners: how the pooled maps are resized.
      dtype: compute dtype; parameters are float32.
      rngs: source of the initial parameters.
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
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.align_corners = align_corners
        pooled = in_channels // 4 if quarter else channels
        self.branches = nnx.List(
            [
                ConvNorm(in_channels, pooled, 1, activation=activation, dtype=dtype, rngs=rngs)
                for _ in self.bins
            ]
        )
        joined = in_channels + len(self.bins) * pooled
        self.bottleneck = ConvNorm(
            joined, channels, 3, activation=activation, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: Float[Array, "B h w C"], *, train: bool) -> Float[Array, "B h w D"]:
        """Returns the map with what was pooled around every pixel."""
        maps = [x]
        pools = adaptive_average_pools(x, self.bins)
        for conv, pooled in zip(self.branches, pools, strict=True):
            pooled = conv(pooled, train=train)
            maps.append(resize(pooled, x.shape[1:3], align_corners=self.align_corners))
        return self.bottleneck(jnp.concatenate(maps, axis=-1), train=train)


class AtrousPyramid(nnx.Module):
    """Convolutions at four dilations and the pooled image, concatenated, and a bottleneck.

    Args:
      in_channels: of the map that it reads.
      channels: of each branch and of the result.
      separable: build the dilated convolutions from depthwise and pointwise ones.
      dilations: of the three; these go with a backbone of output stride 8, half of them with 16.
      bottleneck: size of the last convolution's kernel.
      dtype: compute dtype; parameters are float32.
      rngs: source of the initial parameters.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        separable: bool = False,
        dilations: Sequence[int] = (12, 24, 36),
        bottleneck: int = 3,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.image_pool = ConvNorm(in_channels, channels, 1, dtype=dtype, rngs=rngs)
        self.atrous = nnx.List([])
        self.atrous.append(ConvNorm(in_channels, channels, 1, dtype=dtype, rngs=rngs))
        for dilation in dilations:
            self.atrous.append(
                SeparableConvNorm(in_channels, channels, dilation=dilation, dtype=dtype, rngs=rngs)
                if separable
                else ConvNorm(in_channels, channels, 3, dilation=dilation, dtype=dtype, rngs=rngs)
            )
        self.bottleneck = ConvNorm(
            (len(self.atrous) + 1) * channels, channels, bottleneck, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: Float[Array, "B h w C"], *, train: bool) -> Float[Array, "B h w D"]:
        """Returns the map with what the branches saw around every pixel."""
        pooled = self.image_pool(jnp.mean(x, axis=(1, 2), keepdims=True), train=train)
        maps = [jnp.broadcast_to(pooled, (*x.shape[:3], pooled.shape[3]))]
        maps += [branch(x, train=train) for branch in self.atrous]
        return self.bottleneck(jnp.concatenate(maps, axis=-1), train=train)


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

    def decode_features(  # noqa: D102
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


class FPNHead(Head):
    """The feature pyramid's way down (Lin et al., CVPR 2017); its finest map is classified.

    From coarse to fine each stage enters by a 1x1 convolution, what is coarser is added, and a 3x3
    convolution smooths the sum. The pyramid's other maps are left out, and so are the convolutions
    on them that mmsegmentation's FPNHead adds up: they cost more than a light backbone.
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
        make = {"dtype": dtype, "rngs": rngs}
        self.laterals = nnx.List(
            [ConvNorm(specs[name].channels, channels, 1, **make) for name in STAGES]
        )
        self.smoothers = nnx.List([ConvNorm(channels, channels, 3, **make) for _ in STAGES[:-1]])
        super().__init__(channels, specs["stage1"].stride, num_classes, **make)

    def decode_features(  # noqa: D102
        self, features: dict[str, Array], *, train: bool, rngs: nnx.Rngs | None
    ) -> Float[Array, "B h w D"]:
        del rngs
        *finer, coarsest = self.laterals
        x = coarsest(features[STAGES[-1]], train=train)
        for name, lateral, smoother in reversed(
            list(zip(STAGES[:-1], finer, self.smoothers, strict=True))
        ):
            level = lateral(features[name], train=train)
            x = smoother(level + resize(x, level.shape[1:3]), train=train)
        return x


class DeepLabHead(Head):
    """The atrous pyramid with a 1x1 bottleneck, one more 3x3 convolution, and the classifier.

    As torchvision's class of that name, which has no dropout before the classifier; CIRKD's has.
    """

    def __init__(
        self,
        specs: dict[str, FeatureSpec],
        channels: int,
        num_classes: int,
        *,
        dropout: float = 0.0,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        last = specs["stage4"]
        self.pyramid = AtrousPyramid(last.channels, channels, bottleneck=1, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)
        self.refine = ConvNorm(channels, channels, 3, dtype=dtype, rngs=rngs)
        super().__init__(
            channels, last.stride, num_classes, dropout=dropout, dtype=dtype, rngs=rngs
        )

    def decode_features(  # noqa: D102
        self, features: dict[str, Array], *, train: bool, rngs: nnx.Rngs | None
    ) -> Float[Array, "B h w D"]:
        x = self.pyramid(features["stage4"], train=train)
        x = self.dropout(x, deterministic=not train, rngs=rngs)
        return self.refine(x, train=train)


class SeparableASPPHead(Head):
    """The pyramid on the last stage, refined beside the first stage at its resolution.

    As mmsegmentation's DepthwiseSeparableASPPHead, or lighter, as the paper has it.

    Args:
      specs: the features of the backbone.
      channels: of the pyramid's map and of the decoder.
      num_classes: K.
      dilations: of the pyramid.
      bottleneck: size of the pyramid's last kernel.
      fine: the first stage enters through this share of the channels: 48 of 512 and 12 of 128 in
        mmsegmentation's configs, 48 of 256 in the paper.
      dtype: compute dtype; parameters are float32.
      rngs: source of the initial parameters.
    """

    def __init__(
        self,
        specs: dict[str, FeatureSpec],
        channels: int,
        num_classes: int,
        *,
        dilations: Sequence[int] = (12, 24, 36),
        bottleneck: int = 3,
        fine: float = 3 / 32,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.pyramid = AtrousPyramid(
            specs["stage4"].channels,
            channels,
            separable=True,
            dilations=dilations,
            bottleneck=bottleneck,
            dtype=dtype,
            rngs=rngs,
        )
        fine_channels = max(1, int(fine * channels))
        self.fine = ConvNorm(specs["stage1"].channels, fine_channels, 1, dtype=dtype, rngs=rngs)
        self.decoder = nnx.List(
            [
                SeparableConvNorm(channels + fine_channels, channels, dtype=dtype, rngs=rngs),
                SeparableConvNorm(channels, channels, dtype=dtype, rngs=rngs),
            ]
        )
        super().__init__(channels, specs["stage1"].stride, num_classes, dtype=dtype, rngs=rngs)

    def decode_features(  # noqa: D102
        self, features: dict[str, Array], *, train: bool, rngs: nnx.Rngs | None
    ) -> Float[Array, "B h w D"]:
        del rngs
        x = self.pyramid(features["stage4"], train=train)
        fine = self.fine(features["stage1"], train=train)
        x = jnp.concatenate([resize(x, fine.shape[1:3]), fine], axis=-1)
        for conv in self.decoder:
            x = conv(x, train=train)
        return x
