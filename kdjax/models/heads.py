"""Heads of convolutions and linear layers, and what every head shares."""

import abc
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.distillation import Classification
from kdjax.models.layers import Conv, ConvNorm, normal, resize
from kdjax.models.outputs import STAGES, FeatureSpec


def classifier_normal(key: Array, shape: Sequence[int], dtype: jnp.dtype) -> Array:
    """Initialises a classifier's kernel with standard deviation 0.01, as mmsegmentation."""
    return normal(key, shape, 0.01).astype(dtype)


class Classifier(nnx.Module):
    """Channel dropout, then the 1x1 convolution to class scores."""

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        dropout: float = 0.1,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        # Whole channels are dropped, as PyTorch's Dropout2d does.
        self.dropout = nnx.Dropout(dropout, broadcast_dims=(1, 2))
        self.conv = Conv(
            in_channels,
            num_classes,
            1,
            bias=True,
            kernel_init=classifier_normal,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(
        self, x: Float[Array, "B h w C"], *, train: bool, rngs: nnx.Rngs | None
    ) -> Classification:
        """Returns class scores; `rngs` is needed where `train` drops channels."""
        x = self.dropout(x, deterministic=not train, rngs=rngs)
        kernel, bias = self.conv.kernel[...], self.conv.bias
        assert bias is not None
        return Classification(self.conv(x), x, kernel[0, 0], bias[...])


class Head(nnx.Module):
    """A head; a kind of head says in `read` what its classifier gets.

    Attributes:
      channels: of the map that the classifier reads.
      stride: of that map and of the scores.
      classifier: the classifier.
    """

    def __init__(
        self,
        channels: int,
        stride: int,
        num_classes: int,
        *,
        dropout: float = 0.1,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.channels, self.stride = channels, stride
        self.classifier = Classifier(channels, num_classes, dropout=dropout, dtype=dtype, rngs=rngs)

    @abc.abstractmethod
    def decode_features(
        self, features: dict[str, Array], *, train: bool, rngs: nnx.Rngs | None
    ) -> Float[Array, "B h w D"]:
        """Makes the map that the classifier reads."""

    def __call__(
        self, features: dict[str, Array], *, train: bool, rngs: nnx.Rngs | None
    ) -> tuple[Classification, Float[Array, "B h w D"]]:
        """Returns the class scores and the map that the classifier reads (before its dropout)."""
        x = self.decode_features(features, train=train, rngs=rngs)
        return self.classifier(x, train=train, rngs=rngs), x


class PyramidHead(Head):
    """One pyramid on the last stage: PSPNet's or DeepLabV3's.

    Args:
      pyramid: builds it from (in_channels, channels, dtype=, rngs=).
      specs: the features of the backbone.
      channels: of the pyramid's map.
      num_classes: K.
      dtype: compute dtype; parameters are float32.
      rngs: source of the initial parameters.
    """

    def __init__(
        self,
        pyramid: Callable[..., Any],
        specs: dict[str, FeatureSpec],
        channels: int,
        num_classes: int,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        last = specs["stage4"]
        self.pyramid = pyramid(last.channels, channels, dtype=dtype, rngs=rngs)
        super().__init__(channels, last.stride, num_classes, dtype=dtype, rngs=rngs)

    def decode_features(  # noqa: D102
        self, features: dict[str, Array], *, train: bool, rngs: nnx.Rngs | None
    ) -> Float[Array, "B h w D"]:
        del rngs
        return self.pyramid(features["stage4"], train=train)


class FCNHead(Head):
    """Convolutions in a row and the classifier.

    Args:
      specs: the features of the backbone.
      channels: of the convolutions.
      num_classes: K.
      sources: the features that it reads: one, or several that are resized to the first and
        concatenated.
      num_convs: how many convolutions.
      size: of their kernels.
      concat_input: whether one more convolution reads the input beside the result.
      activation: behind every batch norm.
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
        sources: Sequence[str],
        num_convs: int = 1,
        size: int = 3,
        concat_input: bool = False,
        activation: Callable[[Array], Array] = nnx.relu,
        dropout: float = 0.1,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.sources = tuple(sources)
        in_channels = sum(specs[name].channels for name in self.sources)
        conv = partial(ConvNorm, activation=activation, dtype=dtype, rngs=rngs)
        self.convs = nnx.List([])
        for index in range(num_convs):
            read = channels if index else in_channels
            self.convs.append(conv(read, channels, size))
        self.merge = conv(in_channels + channels, channels, size) if concat_input else None
        stride = specs[self.sources[0]].stride
        super().__init__(channels, stride, num_classes, dropout=dropout, dtype=dtype, rngs=rngs)

    def decode_features(  # noqa: D102
        self, features: dict[str, Array], *, train: bool, rngs: nnx.Rngs | None
    ) -> Float[Array, "B h w D"]:
        del rngs
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

    The last stage, weighed channel by channel from its average, is refined beside the second and
    the first stage at their resolutions. The average is that of the whole map, as in torchvision;
    mmsegmentation's windows of 49 x 49 places need images of at least 784 pixels at stride 16.
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
        # mmsegmentation's 32 and 64 of 128 channels.
        self.sources = {"stage1": channels // 4, "stage2": channels // 2}
        make = {"dtype": dtype, "rngs": rngs}
        self.reduce = ConvNorm(specs["stage4"].channels, channels, 1, **make)
        self.gate = Conv(specs["stage4"].channels, channels, 1, **make)
        self.enter = Conv(channels, channels, 1, bias=True, **make)
        self.sides, self.joins = nnx.List([]), nnx.List([])
        for name, side in self.sources.items():
            self.sides.append(Conv(specs[name].channels, side, 1, **make))
            self.joins.append(ConvNorm(channels + side, channels, 1, **make))
        super().__init__(channels, specs["stage1"].stride, num_classes, **make)

    def decode_features(  # noqa: D102
        self, features: dict[str, Array], *, train: bool, rngs: nnx.Rngs | None
    ) -> Float[Array, "B h w D"]:
        del rngs
        last = features["stage4"]
        gate = nnx.sigmoid(self.gate(jnp.mean(last, axis=(1, 2), keepdims=True)))
        x = self.enter(self.reduce(last, train=train) * gate)
        for name, side, join in reversed(
            list(zip(self.sources, self.sides, self.joins, strict=True))
        ):
            beside = side(features[name])
            x = jnp.concatenate([resize(x, beside.shape[1:3]), beside], axis=-1)
            x = join(x, train=train)
        return x


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

    def decode_features(  # noqa: D102
        self, features: dict[str, Array], *, train: bool, rngs: nnx.Rngs | None
    ) -> Float[Array, "B h w D"]:
        del rngs
        size = features[STAGES[0]].shape[1:3]
        maps = [
            resize(projection(features[stage], train=train), size)
            for projection, stage in zip(self.projections, STAGES, strict=True)
        ]
        return self.fuse(jnp.concatenate(maps, axis=-1), train=train)
