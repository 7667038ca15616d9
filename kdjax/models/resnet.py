"""ResNet with the deep or the plain stem (He et al. 2016; deep stem: He et al. 2019).

As mmsegmentation's ResNetV1c and ResNet. Dilated, it has output stride 8: stages 3 and 4 keep the
resolution of stage 2 and dilate by 2 and 4 instead, the first block of each with half that
dilation ("contract dilation").
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models.layers import ConvNorm, max_pool
from kdjax.models.outputs import FeatureSpec


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions; only the first strides and dilates."""

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int,
        dilation: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.conv1 = ConvNorm(
            in_channels, channels, 3, stride=stride, dilation=dilation, dtype=dtype, rngs=rngs
        )
        self.conv2 = ConvNorm(channels, channels, 3, activation=None, dtype=dtype, rngs=rngs)
        self.downsample = _downsample(in_channels, channels, stride, dtype, rngs)

    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B h w D"]:
        """Adds the block's output to its shortcut, then rectifies."""
        shortcut = x if self.downsample is None else self.downsample(x, train=train)
        return nnx.relu(shortcut + self.conv2(self.conv1(x, train=train), train=train))


class Bottleneck(nnx.Module):
    """1x1, 3x3, 1x1 with four times the channels at the end; the 3x3 strides and dilates."""

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int,
        dilation: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        out_channels = channels * self.expansion
        self.conv1 = ConvNorm(in_channels, channels, 1, dtype=dtype, rngs=rngs)
        self.conv2 = ConvNorm(
            channels, channels, 3, stride=stride, dilation=dilation, dtype=dtype, rngs=rngs
        )
        self.conv3 = ConvNorm(channels, out_channels, 1, activation=None, dtype=dtype, rngs=rngs)
        self.downsample = _downsample(in_channels, out_channels, stride, dtype, rngs)

    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B h w D"]:
        """Adds the block's output to its shortcut, then rectifies."""
        shortcut = x if self.downsample is None else self.downsample(x, train=train)
        x = self.conv2(self.conv1(x, train=train), train=train)
        return nnx.relu(shortcut + self.conv3(x, train=train))


def _downsample(
    in_channels: int, channels: int, stride: int, dtype: jnp.dtype, rngs: nnx.Rngs
) -> ConvNorm | None:
    if stride == 1 and in_channels == channels:
        return None
    return ConvNorm(
        in_channels, channels, 1, stride=stride, activation=None, dtype=dtype, rngs=rngs
    )


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
      deep_stem: begin with three 3x3 convolutions (v1c), else with one of 7x7 (torchvision).
      dilated: output stride 8, else 32.
      dtype: compute dtype; parameters are float32.
      rngs: source of the initial parameters.
    """

    def __init__(
        self,
        depth: int,
        *,
        width: int = 64,
        deep_stem: bool = True,
        dilated: bool = True,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        block, counts = DEPTHS[depth]
        half = width // 2
        if deep_stem:
            self.stem = nnx.List(
                [
                    ConvNorm(3, half, 3, stride=2, dtype=dtype, rngs=rngs),
                    ConvNorm(half, half, 3, dtype=dtype, rngs=rngs),
                    ConvNorm(half, width, 3, dtype=dtype, rngs=rngs),
                ]
            )
        else:
            self.conv1 = ConvNorm(3, width, 7, stride=2, dtype=dtype, rngs=rngs)
        self.deep_stem = deep_stem
        strides, dilations = (1, 2, 2, 2), (1, 1, 1, 1)
        if dilated:
            strides, dilations = (1, 2, 1, 1), (1, 1, 2, 4)
        self.stages = nnx.List([])
        self.specs: dict[str, FeatureSpec] = {}
        channels, total_stride = width, 4
        for index, count in enumerate(counts):
            blocks = nnx.List([])
            for position in range(count):
                first = position == 0
                dilation = dilations[index]
                blocks.append(
                    block(
                        channels,
                        width * 2**index,
                        stride=strides[index] if first else 1,
                        dilation=max(1, dilation // 2) if first else dilation,
                        dtype=dtype,
                        rngs=rngs,
                    )
                )
                channels = width * 2**index * block.expansion
            self.stages.append(blocks)
            total_stride *= strides[index]
            self.specs[f"stage{index + 1}"] = FeatureSpec(channels, total_stride)

    @property
    def feature_specs(self) -> dict[str, FeatureSpec]:
        """The maps that a call returns, by name."""
        return dict(self.specs)

    def __call__(
        self, images: Float[Array, "B H W 3"], *, train: bool, rngs: nnx.Rngs | None = None
    ) -> dict[str, Float[Array, "B h w C"]]:
        """Returns the outputs of the four stages as "stage1" to "stage4"; draws nothing."""
        x = images
        for conv in self.stem if self.deep_stem else (self.conv1,):
            x = conv(x, train=train)
        x = max_pool(x)
        features = {}
        for index, blocks in enumerate(self.stages):
            for block in blocks:
                x = block(x, train=train)
            features[f"stage{index + 1}"] = x
        return features
