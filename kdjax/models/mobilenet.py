"""MobileNetV2 (Sandler et al., CVPR 2018), as mmsegmentation's backbone of that name.

EfficientNet-Lite has the same block, the inverted residual.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Unpack

import jax
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models.layers import Common, ConvNorm, DropPath, Features, Rngs, dilate, scaled
from kdjax.models.outputs import FeatureSpec


class Layer(NamedTuple):
    """Successive blocks of one kernel size. The first block has the stride."""

    expansion: int
    channels: int
    blocks: int
    size: int
    stride: int


LAYERS = (
    Layer(1, 16, 1, 3, 1),
    Layer(6, 24, 2, 3, 2),
    Layer(6, 32, 3, 3, 2),
    Layer(6, 64, 4, 3, 2),
    Layer(6, 96, 3, 3, 1),
    Layer(6, 160, 3, 3, 2),
    Layer(6, 320, 1, 3, 1),
)
# The layers that end a stage.
STAGE_ENDS = {1: "stage1", 2: "stage2", 4: "stage3", 6: "stage4"}


class InvertedResidual(nnx.Module):
    """A widening 1x1 convolution, a depthwise one, and a narrowing 1x1 one without activation.

    Args:
      in_channels: of the input.
      channels: of the result.
      expansion: hidden channels per input channel. With 1, nothing is widened.
      size: of the depthwise kernel.
      stride: of the depthwise convolution.
      dilation: of the depthwise convolution.
      conv: builds the convolutions with their norms.
      drop_path: rate at which training drops the branch, if there is a shortcut.
      **common: see `Common`.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        expansion: int,
        size: int,
        stride: int,
        dilation: int,
        conv: Callable[..., ConvNorm],
        drop_path: float,
        **common: Unpack[Common],
    ):
        hidden = in_channels * expansion
        conv = partial(conv, **common)
        wide = partial(conv, activation=jax.nn.relu6)
        self.convs = nnx.List([])
        if expansion != 1:
            self.convs.append(wide(in_channels, hidden, 1))
        self.convs.append(
            wide(hidden, hidden, size, stride=stride, dilation=dilation, depthwise=True)
        )
        self.convs.append(conv(hidden, channels, 1, activation=None))
        self.residual = stride == 1 and in_channels == channels
        self.drop_path = DropPath(drop_path)

    def __call__(
        self, x: Float[Array, "B H W C"], *, train: bool, rngs: Rngs
    ) -> Float[Array, "B h w D"]:
        """Applies the convolutions, and adds the input if size and channels are the same."""
        shortcut = x
        for conv in self.convs:
            x = conv(x, train=train)
        if not self.residual:
            return x
        return shortcut + self.drop_path(x, deterministic=not train, rngs=rngs)


def build_layers(
    layers: Sequence[Layer],
    in_channels: int,
    *,
    width: int,
    output_stride: int,
    dilate_all: bool,
    conv: Callable[..., ConvNorm] = ConvNorm,
    drop_path: float = 0.0,
    **common: Unpack[Common],
) -> tuple[nnx.List, dict[str, FeatureSpec]]:
    """Builds layers of inverted residuals behind a convolution of stride 2.

    Args:
      layers: with published channels.
      in_channels: of the input.
      width: 64 is the published network.
      output_stride: of the last layer: 8, 16 or 32.
      dilate_all: dilate all blocks of a dilated layer, and the first block of a layer that lost its
        stride by half. Otherwise dilate only the first block of a dilated layer.
      conv: builds the convolutions with their norms.
      drop_path: the rates of the blocks rise from 0 towards this rate.
      **common: see `Common`.

    Returns:
      The blocks of each layer, and the specs of the stages.
    """
    strides, dilations = dilate([layer.stride for layer in layers], output_stride, entry=2)
    built, specs, total_stride, before = nnx.List([]), {}, 2, 1
    number, count = 0, sum(layer.blocks for layer in layers)
    for index, layer in enumerate(layers):
        channels, dilation = scaled(layer.channels, width), dilations[index]
        first, others = (before, dilation) if dilate_all else (dilation, 1)
        blocks = nnx.List([])
        for position in range(layer.blocks):
            blocks.append(
                InvertedResidual(
                    channels if position else in_channels,
                    channels,
                    expansion=layer.expansion,
                    size=layer.size,
                    stride=1 if position else strides[index],
                    dilation=others if position else first,
                    conv=conv,
                    drop_path=drop_path * number / count,
                    **common,
                )
            )
            number += 1
        built.append(blocks)
        in_channels, before = channels, dilation
        total_stride *= strides[index]
        if index in STAGE_ENDS:
            specs[STAGE_ENDS[index]] = FeatureSpec(channels, total_stride)
    return built, specs


def run_layers(layers: nnx.List, x: Array, *, train: bool, rngs: Rngs) -> Features:
    """Returns the outputs of the layers that end a stage, "stage1" to "stage4"."""
    features = {}
    for index, blocks in enumerate(layers):
        for block in blocks:
            x = block(x, train=train, rngs=rngs)
        if index in STAGE_ENDS:
            features[STAGE_ENDS[index]] = x
    return features


class MobileNetV2(nnx.Module):
    """MobileNetV2 without its classifier.

    Args:
      width: 64 is the published network; all channels scale with it.
      output_stride: of the last stage: 8, 16 or 32.
      dilate_all: see `build_layers`; mmsegmentation's networks of output stride 8 have False.
      in_channels: the bands of the images.
      **common: see `Common`.
    """

    def __init__(
        self,
        *,
        width: int = 64,
        output_stride: int = 8,
        dilate_all: bool = False,
        in_channels: int = 3,
        **common: Unpack[Common],
    ):
        channels = scaled(32, width)
        self.entry = ConvNorm(in_channels, channels, 3, stride=2, activation=jax.nn.relu6, **common)
        self.layers, self.feature_specs = build_layers(
            LAYERS,
            channels,
            width=width,
            output_stride=output_stride,
            dilate_all=dilate_all,
            **common,
        )

    def __call__(self, images: Array, *, train: bool, rngs: Rngs = None) -> Features:
        """Returns the outputs of layers 2, 3, 5 and 7 as "stage1" to "stage4"."""
        return run_layers(self.layers, self.entry(images, train=train), train=train, rngs=rngs)
