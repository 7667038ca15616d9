"""ResNet with one of three stems (He et al. 2016; deep stem: He et al. 2019).

The default is mmsegmentation's ResNetV1c. At output stride 8, stages 3 and 4 have the resolution of
stage 2 and dilations of 2 and 4. The first block of each has half the dilation ("contract
dilation").
"""

from typing import Literal, Unpack

from flax import nnx
from jaxtyping import Array, Float

from kdjax.models.layers import Common, ConvNorm, Features, Rngs, dilate, max_pool
from kdjax.models.outputs import FeatureSpec


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions. The first has the stride and the dilation; the second may dilate."""

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        second_dilation: int = 1,
        **common: Unpack[Common],
    ):
        self.conv1 = ConvNorm(in_channels, channels, 3, stride=stride, dilation=dilation, **common)
        self.conv2 = ConvNorm(
            channels, channels, 3, dilation=second_dilation, activation=None, **common
        )
        self.downsample = _downsample(in_channels, channels, stride, **common)

    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B h w D"]:
        """Adds the block's output to its shortcut, then applies ReLU."""
        shortcut = x if self.downsample is None else self.downsample(x, train=train)
        return nnx.relu(shortcut + self.conv2(self.conv1(x, train=train), train=train))


class Bottleneck(nnx.Module):
    """1x1, 3x3, and 1x1 convolutions. The 3x3 has the stride and the dilation.

    The last one has four times the channels.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        **common: Unpack[Common],
    ):
        out_channels = channels * self.expansion
        self.conv1 = ConvNorm(in_channels, channels, 1, **common)
        self.conv2 = ConvNorm(channels, channels, 3, stride=stride, dilation=dilation, **common)
        self.conv3 = ConvNorm(channels, out_channels, 1, activation=None, **common)
        self.downsample = _downsample(in_channels, out_channels, stride, **common)

    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B h w D"]:
        """Adds the block's output to its shortcut, then applies ReLU."""
        shortcut = x if self.downsample is None else self.downsample(x, train=train)
        x = self.conv2(self.conv1(x, train=train), train=train)
        return nnx.relu(shortcut + self.conv3(x, train=train))


def _downsample(
    in_channels: int, channels: int, stride: int, **common: Unpack[Common]
) -> ConvNorm | None:
    if stride == 1 and in_channels == channels:
        return None
    return ConvNorm(in_channels, channels, 1, stride=stride, activation=None, **common)


DEPTHS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}


class ResNet(nnx.Module):
    """ResNet of four stages.

    Args:
      depth: 18, 34, 50 or 101.
      width: channels of the first stage; 64 is the published network.
      stem: "deep" begins with three 3x3 convolutions (v1c), "wide" with three of which the last
        has twice the channels (v1s), "plain" with one of 7x7 (torchvision).
      output_stride: of the last stage: 8, 16 or 32.
      contract: the first block of a dilated stage has half the dilation.
      dilate_second: the second convolution of a `BasicBlock` has the dilation of its stage.
      ceil_pool: the max-pooling is in ceil mode.
      in_channels: the bands of the images.
      **common: see `Common`.
    """

    def __init__(
        self,
        depth: int,
        *,
        width: int = 64,
        stem: Literal["deep", "wide", "plain"] = "deep",
        output_stride: int = 8,
        contract: bool = True,
        dilate_second: bool = False,
        ceil_pool: bool = False,
        in_channels: int = 3,
        **common: Unpack[Common],
    ):
        block, counts = DEPTHS[depth]
        incoming = 2 * width if stem == "wide" else width
        if stem == "plain":
            self.conv1 = ConvNorm(in_channels, incoming, 7, stride=2, **common)
        else:
            half = incoming // 2
            self.stem = nnx.List(
                [
                    ConvNorm(in_channels, half, 3, stride=2, **common),
                    ConvNorm(half, half, 3, **common),
                    ConvNorm(half, incoming, 3, **common),
                ]
            )
        self.deep_stem, self.ceil_pool = stem != "plain", ceil_pool
        strides, dilations = dilate((1, 2, 2, 2), output_stride, entry=4)
        self.stages = nnx.List([])
        self.feature_specs: dict[str, FeatureSpec] = {}
        total_stride = 4
        for index, count in enumerate(counts):
            blocks, dilation, channels = nnx.List([]), dilations[index], width * 2**index
            second = {}
            if dilate_second and block is BasicBlock:
                second = {"second_dilation": dilation}
            for position in range(count):
                first = position == 0
                blocks.append(
                    block(
                        incoming,
                        channels,
                        stride=strides[index] if first else 1,
                        dilation=max(1, dilation // 2) if first and contract else dilation,
                        **second,
                        **common,
                    )
                )
                incoming = channels * block.expansion
            self.stages.append(blocks)
            total_stride *= strides[index]
            self.feature_specs[f"stage{index + 1}"] = FeatureSpec(incoming, total_stride)

    def __call__(self, images: Array, *, train: bool, rngs: Rngs = None) -> Features:
        """Returns the outputs of the four stages as "stage1" to "stage4"."""
        x = images
        for conv in self.stem if self.deep_stem else (self.conv1,):
            x = conv(x, train=train)
        x = max_pool(x, ceil=self.ceil_pool)
        features = {}
        for index, blocks in enumerate(self.stages):
            for block in blocks:
                x = block(x, train=train)
            features[f"stage{index + 1}"] = x
        return features
