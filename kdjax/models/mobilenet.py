"""MobileNetV2 (Sandler et al., CVPR 2018), as mmsegmentation's backbone of that name.

Its block, the inverted residual, is EfficientNet-Lite's too.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models.layers import ConvNorm, DropPath, dilate, scaled
from kdjax.models.outputs import FeatureSpec

# Expansion, channels and blocks of each layer; its stride; which layers end a stage.
LAYERS = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
STRIDES = (1, 2, 2, 2, 1, 2, 1)
STAGE_ENDS = {1: "stage1", 2: "stage2", 4: "stage3", 6: "stage4"}


class InvertedResidual(nnx.Module):
    """Widens 1x1 (where it expands), filters each channel by itself, narrows 1x1 without ReLU.

    Args:
      in_channels: of the map that it reads.
      channels: of the result.
      expansion: hidden channels, in times of `in_channels`.
      size: of the kernel that filters each channel.
      stride: of that filter.
      dilation: likewise.
      conv: builds the convolutions, each with its norm.
      drop_path: rate at which training drops the branch, where there is a shortcut.
      dtype: compute dtype; parameters are float32.
      rngs: source of the initial parameters.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        expansion: int,
        size: int = 3,
        stride: int,
        dilation: int,
        conv: Callable[..., ConvNorm] = ConvNorm,
        drop_path: float = 0.0,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        hidden = in_channels * expansion
        conv = partial(conv, dtype=dtype, rngs=rngs)
        relu6 = jax.nn.relu6
        self.convs = nnx.List([])
        if expansion != 1:
            self.convs.append(conv(in_channels, hidden, 1, activation=relu6))
        self.convs.append(
            conv(
                hidden,
                hidden,
                size,
                stride=stride,
                dilation=dilation,
                depthwise=True,
                activation=relu6,
            )
        )
        self.convs.append(conv(hidden, channels, 1, activation=None))
        self.residual = stride == 1 and in_channels == channels
        self.drop_path = DropPath(drop_path)

    def __call__(
        self, x: Float[Array, "B H W C"], *, train: bool, rngs: nnx.Rngs | None
    ) -> Float[Array, "B h w D"]:
        """Applies the convolutions; adds the input where size and channels stay."""
        shortcut = x
        for conv in self.convs:
            x = conv(x, train=train)
        if not self.residual:
            return x
        return shortcut + self.drop_path(x, deterministic=not train, rngs=rngs)


class MobileNetV2(nnx.Module):
    """MobileNetV2 without its classifier.

    Args:
      width: 64 is the published network; all channels scale with it.
      output_stride: of the last stage: 8, 16 or 32.
      dilate_all: whether all blocks of a dilated layer dilate, and the first of a layer that does
        no longer stride by half; else only the first dilates, as in mmsegmentation's d8.
      dtype: compute dtype; parameters are float32.
      rngs: source of the initial parameters.
    """

    def __init__(
        self,
        *,
        width: int = 64,
        output_stride: int = 8,
        dilate_all: bool = False,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        strides, dilations = dilate(STRIDES, output_stride, entry=2)
        channels, total_stride, before = scaled(32, width), 2, 1
        self.entry = ConvNorm(
            3, channels, 3, stride=2, activation=jax.nn.relu6, dtype=dtype, rngs=rngs
        )
        self.layers = nnx.List([])
        self.specs: dict[str, FeatureSpec] = {}
        for index, (expansion, published, count) in enumerate(LAYERS):
            blocks, dilation = nnx.List([]), dilations[index]
            for position in range(count):
                first = position == 0
                if dilate_all:
                    own_dilation = before if first else dilation
                else:
                    own_dilation = dilation if first else 1
                blocks.append(
                    InvertedResidual(
                        channels,
                        scaled(published, width),
                        expansion=expansion,
                        stride=strides[index] if first else 1,
                        dilation=own_dilation,
                        dtype=dtype,
                        rngs=rngs,
                    )
                )
                channels = scaled(published, width)
            self.layers.append(blocks)
            total_stride, before = total_stride * strides[index], dilation
            if index in STAGE_ENDS:
                self.specs[STAGE_ENDS[index]] = FeatureSpec(channels, total_stride)

    @property
    def feature_specs(self) -> dict[str, FeatureSpec]:
        """The maps that a call returns, by name."""
        return dict(self.specs)

    def __call__(
        self, images: Float[Array, "B H W 3"], *, train: bool, rngs: nnx.Rngs | None = None
    ) -> dict[str, Float[Array, "B h w C"]]:
        """Returns the outputs of layers 2, 3, 5 and 7 as "stage1" to "stage4"; draws nothing."""
        x = self.entry(images, train=train)
        features = {}
        for index, blocks in enumerate(self.layers):
            for block in blocks:
                x = block(x, train=train, rngs=rngs)
            if index in STAGE_ENDS:
                features[STAGE_ENDS[index]] = x
        return features
