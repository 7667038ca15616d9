"""MobileNetV2 (Sandler et al., CVPR 2018), as mmsegmentation's backbone of that name."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models.layers import ConvNorm, scaled
from kdjax.models.outputs import FeatureSpec

# Expansion, channels and blocks of each layer; which layers end a stage.
LAYERS = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
STAGE_ENDS = {1: "stage1", 2: "stage2", 4: "stage3", 6: "stage4"}


class InvertedResidual(nnx.Module):
    """Widens 1x1 (where it expands), 3x3 of each channel by itself, narrows 1x1 without ReLU."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        expansion: int,
        stride: int,
        dilation: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        hidden = in_channels * expansion
        relu6 = jax.nn.relu6
        self.convs = nnx.List([])
        if expansion != 1:
            self.convs.append(
                ConvNorm(in_channels, hidden, 1, activation=relu6, dtype=dtype, rngs=rngs)
            )
        self.convs.append(
            ConvNorm(
                hidden,
                hidden,
                3,
                stride=stride,
                dilation=dilation,
                depthwise=True,
                activation=relu6,
                dtype=dtype,
                rngs=rngs,
            )
        )
        self.convs.append(ConvNorm(hidden, channels, 1, activation=None, dtype=dtype, rngs=rngs))
        self.residual = stride == 1 and in_channels == channels

    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B h w D"]:
        """Applies the convolutions; adds the input where size and channels stay."""
        shortcut = x
        for conv in self.convs:
            x = conv(x, train=train)
        return shortcut + x if self.residual else x


class MobileNetV2(nnx.Module):
    """MobileNetV2 without its classifier.

    Args:
      width: 64 is the published network; all channels scale with it.
      dilated: output stride 8, else 32.
      dilate_all: whether all blocks of a dilated layer dilate, and the first of a layer that does
        no longer stride by half; else only the first dilates, as in mmsegmentation's d8.
      dtype: compute dtype; parameters are float32.
      rngs: source of the initial parameters.
    """

    def __init__(
        self,
        *,
        width: int = 64,
        dilated: bool = True,
        dilate_all: bool = False,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        strides, first_dilations, dilations = (1, 2, 2, 2, 1, 2, 1), (1,) * 7, (1,) * 7
        if dilated:
            strides, first_dilations = (1, 2, 2, 1, 1, 1, 1), (1, 1, 1, 2, 2, 4, 4)
            if dilate_all:
                first_dilations, dilations = (1, 1, 1, 1, 2, 2, 4), first_dilations
        channels, total_stride = scaled(32, width), 2
        self.entry = ConvNorm(
            3, channels, 3, stride=2, activation=jax.nn.relu6, dtype=dtype, rngs=rngs
        )
        self.layers = nnx.List([])
        self.specs: dict[str, FeatureSpec] = {}
        for index, (expansion, published, count) in enumerate(LAYERS):
            blocks = nnx.List([])
            for position in range(count):
                first = position == 0
                blocks.append(
                    InvertedResidual(
                        channels,
                        scaled(published, width),
                        expansion=expansion,
                        stride=strides[index] if first else 1,
                        dilation=first_dilations[index] if first else dilations[index],
                        dtype=dtype,
                        rngs=rngs,
                    )
                )
                channels = scaled(published, width)
            self.layers.append(blocks)
            total_stride *= strides[index]
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
                x = block(x, train=train)
            if index in STAGE_ENDS:
                features[STAGE_ENDS[index]] = x
        return features
