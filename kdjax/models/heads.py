"""Heads: from the features of a backbone to class scores.

A head is built from (specs, channels, num_classes), the specs of the backbone's features, the
channels of its own map, and the number of classes.
"""

import abc
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Unpack

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.distillation import Classification
from kdjax.models.layers import (
    Common,
    Conv,
    ConvNorm,
    Features,
    Rngs,
    SeparableConvNorm,
    normal,
    resize,
)
from kdjax.models.outputs import STAGES, FeatureSpec
from kdjax.models.pyramids import AtrousPyramid, PyramidPooling

Specs = dict[str, FeatureSpec]
conv3x3 = partial(ConvNorm, size=3)


def classifier_normal(key: Array, shape: Sequence[int], dtype: jnp.dtype) -> Array:
    """Initializes a classifier's kernel with standard deviation 0.01, as mmsegmentation."""
    return normal(key, shape, 0.01).astype(dtype)


class Classifier(nnx.Module):
    """Channel dropout, then the 1x1 convolution to class scores."""

    def __init__(
        self, in_channels: int, num_classes: int, *, dropout: float = 0.1, **common: Unpack[Common]
    ):
        # Drops whole channels, like PyTorch's Dropout2d.
        self.dropout = nnx.Dropout(dropout, broadcast_dims=(1, 2))
        self.conv = Conv(
            in_channels, num_classes, 1, bias=True, kernel_init=classifier_normal, **common
        )

    def __call__(self, x: Float[Array, "B h w C"], *, train: bool, rngs: Rngs) -> Classification:
        """Returns class scores."""
        x = self.dropout(x, deterministic=not train, rngs=rngs)
        kernel, bias = self.conv.kernel[...], self.conv.bias
        assert bias is not None
        return Classification(self.conv(x), x, kernel[0, 0], bias[...])


class Head(nnx.Module):
    """A head. A subclass defines `decode`, which makes the input of the classifier.

    Attributes:
      channels: of the map that the classifier reads.
      stride: of this map and of the scores.
      classifier: the classifier.
    """

    def __init__(
        self,
        channels: int,
        stride: int,
        num_classes: int,
        *,
        dropout: float = 0.1,
        **common: Unpack[Common],
    ):
        self.channels, self.stride = channels, stride
        self.classifier = Classifier(channels, num_classes, dropout=dropout, **common)

    @abc.abstractmethod
    def decode(self, features: Features, *, train: bool, rngs: Rngs) -> Array:
        """Makes the map [B, h, w, D] that the classifier reads."""

    def __call__(
        self, features: Features, *, train: bool, rngs: Rngs
    ) -> tuple[Classification, Float[Array, "B h w D"]]:
        """Returns the class scores and the map that the classifier reads (before its dropout)."""
        x = self.decode(features, train=train, rngs=rngs)
        return self.classifier(x, train=train, rngs=rngs), x


class PyramidHead(Head):
    """One pyramid on the last stage: PSPNet's or DeepLabV3's.

    `pyramid` is a class of `kdjax.models.pyramids`, or a partial of one.
    """

    def __init__(
        self,
        pyramid: Callable[..., Any],
        specs: Specs,
        channels: int,
        num_classes: int,
        **common: Unpack[Common],
    ):
        last = specs["stage4"]
        self.pyramid = pyramid(last.channels, channels, **common)
        super().__init__(channels, last.stride, num_classes, **common)

    def decode(self, features: Features, *, train: bool, rngs: Rngs) -> Array:  # noqa: D102
        return self.pyramid(features["stage4"], train=train)


class FCNHead(Head):
    """Successive convolutions.

    Args:
      specs: the features of the backbone.
      channels: of the convolutions; 0 for as many as the input has.
      num_classes: K.
      sources: the features that it reads. Several are resized to the first and concatenated.
      num_convs: number of convolutions.
      concat_input: add a convolution that reads the input next to the result.
      conv: builds a convolution from (in_channels, channels, dtype=, rngs=).
      dropout: before the classifier.
      **common: see `Common`.
    """

    def __init__(
        self,
        specs: Specs,
        channels: int,
        num_classes: int,
        *,
        sources: Sequence[str],
        num_convs: int = 1,
        concat_input: bool = False,
        conv: Callable[..., ConvNorm] = conv3x3,
        dropout: float = 0.1,
        **common: Unpack[Common],
    ):
        self.sources = tuple(sources)
        in_channels = sum(specs[name].channels for name in self.sources)
        channels = channels or in_channels
        self.convs = nnx.List([])
        for index in range(num_convs):
            self.convs.append(conv(channels if index else in_channels, channels, **common))
        joined = in_channels + channels
        self.merge = conv(joined, channels, **common) if concat_input else None
        stride = specs[self.sources[0]].stride
        super().__init__(channels, stride, num_classes, dropout=dropout, **common)

    def decode(self, features: Features, *, train: bool, rngs: Rngs) -> Array:  # noqa: D102
        size = features[self.sources[0]].shape[1:3]
        inputs = jnp.concatenate([resize(features[name], size) for name in self.sources], axis=-1)
        x = inputs
        for conv in self.convs:
            x = conv(x, train=train)
        if self.merge is not None:
            x = self.merge(jnp.concatenate([inputs, x], axis=-1), train=train)
        return x


class LRASPPHead(Head):
    """Lite R-ASPP (Howard et al., MobileNetV3, ICCV 2019), as mmsegmentation's head of that name.

    The average of the last stage weights its channels. The result is refined next to the second
    and the first stage at their resolutions. The average is over the whole map, as in torchvision;
    mmsegmentation's windows of 49 x 49 need images of at least 784 pixels at stride 16.
    """

    def __init__(self, specs: Specs, channels: int, num_classes: int, **common: Unpack[Common]):
        # mmsegmentation's 32 and 64 of 128 channels.
        self.sources = {"stage1": channels // 4, "stage2": channels // 2}
        last = specs["stage4"].channels
        self.reduce = ConvNorm(last, channels, 1, **common)
        self.gate = Conv(last, channels, 1, **common)
        self.enter = Conv(channels, channels, 1, bias=True, **common)
        self.sides, self.joins = nnx.List([]), nnx.List([])
        for name, side in self.sources.items():
            self.sides.append(Conv(specs[name].channels, side, 1, **common))
            self.joins.append(ConvNorm(channels + side, channels, 1, **common))
        super().__init__(channels, specs["stage1"].stride, num_classes, **common)

    def decode(self, features: Features, *, train: bool, rngs: Rngs) -> Array:  # noqa: D102
        last = features["stage4"]
        gate = nnx.sigmoid(self.gate(jnp.mean(last, axis=(1, 2), keepdims=True)))
        x = self.enter(self.reduce(last, train=train) * gate)
        levels = [*zip(self.sources, self.sides, self.joins, strict=True)]
        for name, side, join in reversed(levels):
            fine = side(features[name])
            x = join(jnp.concatenate([resize(x, fine.shape[1:3]), fine], axis=-1), train=train)
        return x


class NormedProjection(ConvNorm):
    """A 1x1 convolution with batch norm and ReLU, as in mmsegmentation's SegformerHead."""

    def __init__(self, in_channels: int, channels: int, **common: Unpack[Common]):
        super().__init__(in_channels, channels, 1, **common)


class LinearProjection(nnx.Module):
    """A linear map of every pixel, as in the paper, its authors' code, and HuggingFace's."""

    def __init__(self, in_channels: int, channels: int, **common: Unpack[Common]):
        self.conv = Conv(in_channels, channels, 1, bias=True, **common)

    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B H W D"]:
        """Maps; training changes nothing."""
        del train
        return self.conv(x)


class MLPHead(Head):
    """SegFormer's head: projects each stage, resizes to the first stage, concatenates, fuses."""

    def __init__(
        self,
        specs: Specs,
        channels: int,
        num_classes: int,
        *,
        projection: type[NormedProjection | LinearProjection] = NormedProjection,
        dropout: float = 0.1,
        **common: Unpack[Common],
    ):
        self.projections = nnx.List(
            [projection(specs[stage].channels, channels, **common) for stage in STAGES]
        )
        self.fuse = ConvNorm(len(STAGES) * channels, channels, 1, **common)
        stride = specs[STAGES[0]].stride
        super().__init__(channels, stride, num_classes, dropout=dropout, **common)

    def decode(self, features: Features, *, train: bool, rngs: Rngs) -> Array:  # noqa: D102
        size = features[STAGES[0]].shape[1:3]
        maps = [
            resize(projection(features[stage], train=train), size)
            for projection, stage in zip(self.projections, STAGES, strict=True)
        ]
        return self.fuse(jnp.concatenate(maps, axis=-1), train=train)


class UPerHead(Head):
    """Pyramid pooling on the last stage, and a feature pyramid over all four."""

    def __init__(self, specs: Specs, channels: int, num_classes: int, **common: Unpack[Common]):
        self.pyramid = PyramidPooling(specs["stage4"].channels, channels, **common)
        self.laterals, self.smoothers = nnx.List([]), nnx.List([])
        for name in STAGES[:-1]:
            self.laterals.append(ConvNorm(specs[name].channels, channels, 1, **common))
            self.smoothers.append(ConvNorm(channels, channels, 3, **common))
        self.fusion = ConvNorm(len(STAGES) * channels, channels, 3, **common)
        super().__init__(channels, specs["stage1"].stride, num_classes, **common)

    def decode(self, features: Features, *, train: bool, rngs: Rngs) -> Array:  # noqa: D102
        size = features["stage1"].shape[1:3]
        x = self.pyramid(features["stage4"], train=train)
        maps = [resize(x, size)]
        levels = [*zip(STAGES[:-1], self.laterals, self.smoothers, strict=True)]
        # From coarse to fine, a level adds the coarser one before it is smoothed.
        for name, lateral, smoother in reversed(levels):
            level = lateral(features[name], train=train)
            x = level + resize(x, level.shape[1:3])
            maps.append(resize(smoother(x, train=train), size))
        return self.fusion(jnp.concatenate(maps[::-1], axis=-1), train=train)


class FPNHead(Head):
    """The top-down path of the feature pyramid network (Lin et al., CVPR 2017).

    From coarse to fine, each stage enters by a 1x1 convolution, adds the coarser map, and is
    smoothed by a 3x3 convolution. The finest map is classified. mmsegmentation's FPNHead also adds
    up convolutions of all maps, which cost more than a light backbone.
    """

    def __init__(self, specs: Specs, channels: int, num_classes: int, **common: Unpack[Common]):
        self.laterals = nnx.List(
            [ConvNorm(specs[name].channels, channels, 1, **common) for name in STAGES]
        )
        self.smoothers = nnx.List([ConvNorm(channels, channels, 3, **common) for _ in STAGES[:-1]])
        super().__init__(channels, specs["stage1"].stride, num_classes, **common)

    def decode(self, features: Features, *, train: bool, rngs: Rngs) -> Array:  # noqa: D102
        *finer, coarsest = self.laterals
        x = coarsest(features[STAGES[-1]], train=train)
        levels = [*zip(STAGES[:-1], finer, self.smoothers, strict=True)]
        for name, lateral, smoother in reversed(levels):
            level = lateral(features[name], train=train)
            x = smoother(level + resize(x, level.shape[1:3]), train=train)
        return x


class DeepLabHead(Head):
    """The atrous pyramid with a 1x1 bottleneck, and one more 3x3 convolution.

    torchvision's class of that name has no dropout before the classifier; CIRKD's has.
    """

    def __init__(
        self,
        specs: Specs,
        channels: int,
        num_classes: int,
        *,
        dropout: float = 0.0,
        **common: Unpack[Common],
    ):
        last = specs["stage4"]
        self.pyramid = AtrousPyramid(last.channels, channels, bottleneck=1, **common)
        self.dropout = nnx.Dropout(0.5)
        self.refine = ConvNorm(channels, channels, 3, **common)
        super().__init__(channels, last.stride, num_classes, dropout=dropout, **common)

    def decode(self, features: Features, *, train: bool, rngs: Rngs) -> Array:  # noqa: D102
        x = self.pyramid(features["stage4"], train=train)
        x = self.dropout(x, deterministic=not train, rngs=rngs)
        return self.refine(x, train=train)


class SeparableASPPHead(Head):
    """The atrous pyramid on the last stage, refined next to the first stage at its resolution.

    mmsegmentation's DepthwiseSeparableASPPHead. `fine` is the share of the channels for the first
    stage: 48 of 512 and 12 of 128 in mmsegmentation's configs, 48 of 256 in the paper.
    """

    def __init__(
        self,
        specs: Specs,
        channels: int,
        num_classes: int,
        *,
        dilations: Sequence[int] = (12, 24, 36),
        bottleneck: int = 3,
        fine: float = 3 / 32,
        **common: Unpack[Common],
    ):
        self.pyramid = AtrousPyramid(
            specs["stage4"].channels,
            channels,
            separable=True,
            dilations=dilations,
            bottleneck=bottleneck,
            **common,
        )
        fine_channels = max(1, int(fine * channels))
        self.fine = ConvNorm(specs["stage1"].channels, fine_channels, 1, **common)
        self.decoder = nnx.List(
            [
                SeparableConvNorm(channels + fine_channels, channels, **common),
                SeparableConvNorm(channels, channels, **common),
            ]
        )
        super().__init__(channels, specs["stage1"].stride, num_classes, **common)

    def decode(self, features: Features, *, train: bool, rngs: Rngs) -> Array:  # noqa: D102
        x = self.pyramid(features["stage4"], train=train)
        fine = self.fine(features["stage1"], train=train)
        x = jnp.concatenate([resize(x, fine.shape[1:3]), fine], axis=-1)
        for conv in self.decoder:
            x = conv(x, train=train)
        return x
