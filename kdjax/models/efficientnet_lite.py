"""EfficientNet-Lite (Liu and Tan, 2020): EfficientNet for phones and accelerators of integers.

As TensorFlow's models/official/efficientnet/lite and, with the same weights, timm's
`tf_efficientnet_lite0` to `4` and the package efficientnet-lite-pytorch: no squeeze-and-excitation,
ReLU6, and a first and a last layer that are as deep in all sizes. The images that its weights know
are (pixels - 127) / 128.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models.batch_norm import BatchNorm
from kdjax.models.layers import ConvNorm, dilate, scaled
from kdjax.models.mobilenet import STAGE_ENDS, InvertedResidual
from kdjax.models.outputs import FeatureSpec


class Layer(NamedTuple):
    """Blocks in a row as Lite0 has them: the first one strides, kernels are of `size`."""

    expansion: int
    channels: int
    blocks: int
    size: int
    stride: int


LAYERS = (
    Layer(1, 16, 1, 3, 1),
    Layer(6, 24, 2, 3, 2),
    Layer(6, 40, 2, 5, 2),
    Layer(6, 80, 3, 3, 2),
    Layer(6, 112, 3, 5, 1),
    Layer(6, 192, 4, 5, 2),
    Layer(6, 320, 1, 3, 1),
)
ENTRY_CHANNELS = 32
# Factors of channels and of blocks.
SIZES = {
    "lite0": (1.0, 1.0),
    "lite1": (1.0, 1.1),
    "lite2": (1.1, 1.2),
    "lite3": (1.2, 1.4),
    "lite4": (1.4, 1.8),
}


def layers_of(size: str) -> list[Layer]:
    """Returns the layers of "lite0" to "lite4": channels are multiples of 8."""
    wider, deeper = SIZES[size]
    layers = []
    for index, layer in enumerate(LAYERS):
        channels = max(8, int(layer.channels * wider + 4) // 8 * 8)
        if channels < 0.9 * layer.channels * wider:
            channels += 8
        inner = 0 < index < len(LAYERS) - 1
        blocks = math.ceil(layer.blocks * deeper) if inner else layer.blocks
        layers.append(layer._replace(channels=channels, blocks=blocks))
    return layers


class EfficientNetLite(nnx.Module):
    """EfficientNet-Lite without the convolution of 1280 channels before its classifier.

    Convolutions are padded as TensorFlow's "SAME", and batch norm has its constants. At output
    strides 16 and 8 the maps hold those of stride 32 at their last row and column of every 2 or 4,
    where sides are multiples of 32.

    Args:
      size: "lite0" to "lite4".
      width: 64 is the published network; all channels scale with it.
      output_stride: of the last stage: 8, 16 or 32.
      drop_path: rate in training that the blocks' rates rise to from 0, linearly.
      dtype: compute dtype; parameters are float32.
      rngs: source of the initial parameters.
    """

    def __init__(
        self,
        size: str,
        *,
        width: int = 64,
        output_stride: int = 8,
        drop_path: float = 0.2,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        norm = partial(BatchNorm, momentum=0.99, epsilon=1e-3)
        conv = partial(ConvNorm, same=True, norm=norm)
        layers = layers_of(size)
        strides, dilations = dilate([layer.stride for layer in layers], output_stride, entry=2)
        channels, total_stride, before = scaled(ENTRY_CHANNELS, width), 2, 1
        self.conv_stem = conv(
            3, channels, 3, stride=2, activation=jax.nn.relu6, dtype=dtype, rngs=rngs
        )
        self.blocks = nnx.List([])
        self.specs: dict[str, FeatureSpec] = {}
        number, total = 0, sum(layer.blocks for layer in layers)
        for index, layer in enumerate(layers):
            blocks = nnx.List([])
            for position in range(layer.blocks):
                first = position == 0
                blocks.append(
                    InvertedResidual(
                        channels,
                        scaled(layer.channels, width),
                        expansion=layer.expansion,
                        size=layer.size,
                        stride=strides[index] if first else 1,
                        dilation=before if first else dilations[index],
                        conv=conv,
                        drop_path=drop_path * number / total,
                        dtype=dtype,
                        rngs=rngs,
                    )
                )
                channels = scaled(layer.channels, width)
                number += 1
            self.blocks.append(blocks)
            total_stride, before = total_stride * strides[index], dilations[index]
            if index in STAGE_ENDS:
                self.specs[STAGE_ENDS[index]] = FeatureSpec(channels, total_stride)

    @property
    def feature_specs(self) -> dict[str, FeatureSpec]:
        """The maps that a call returns, by name."""
        return dict(self.specs)

    def __call__(
        self, images: Float[Array, "B H W 3"], *, train: bool, rngs: nnx.Rngs | None
    ) -> dict[str, Float[Array, "B h w C"]]:
        """Returns the last maps of strides 4, 8, 16 and 32 as "stage1" to "stage4"."""
        x = self.conv_stem(images, train=train)
        features = {}
        for index, blocks in enumerate(self.blocks):
            for block in blocks:
                x = block(x, train=train, rngs=rngs)
            if index in STAGE_ENDS:
                features[STAGE_ENDS[index]] = x
        return features
