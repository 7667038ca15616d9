"""EfficientNet-Lite (Liu and Tan, 2020): EfficientNet for phones and integer accelerators.

Compared with EfficientNet, it has no squeeze-and-excitation, ReLU6 activations, and first and last
layers of the same depth in all sizes. The layers are those of TensorFlow's
models/official/efficientnet/lite. timm's `tf_efficientnet_lite0` to `4` and the package
efficientnet-lite-pytorch have the same weights. Images are normalized as (pixels - 127) / 128.
"""

import math
from functools import partial
from typing import Unpack

import jax
from flax import nnx
from jaxtyping import Array

from kdjax.models.batch_norm import BatchNorm
from kdjax.models.layers import Common, ConvNorm, Features, Rngs, scaled
from kdjax.models.mobilenet import Layer, build_layers, run_layers

# The layers of Lite0.
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
    """Returns the layers of "lite0" to "lite4". Channels are multiples of 8."""
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
    """EfficientNet-Lite without its classifier and the convolution of 1280 channels before it.

    Convolutions have the padding of TensorFlow's "SAME", and batch norm has TensorFlow's constants.
    If sides are multiples of 32, the maps of output strides 16 and 8 contain those of stride 32,
    at the last of every 2 or 4 rows and columns.

    Args:
      size: "lite0" to "lite4".
      width: 64 is the published network; all channels scale with it.
      output_stride: of the last stage: 8, 16 or 32.
      drop_path: in training, the drop rates of the blocks rise linearly from 0 towards this rate.
      in_channels: the bands of the images.
      **common: see `Common`.
    """

    def __init__(
        self,
        size: str,
        *,
        width: int = 64,
        output_stride: int = 8,
        drop_path: float = 0.2,
        in_channels: int = 3,
        **common: Unpack[Common],
    ):
        norm = partial(BatchNorm, momentum=0.99, epsilon=1e-3)
        conv = partial(ConvNorm, same=True, norm=norm)
        channels = scaled(ENTRY_CHANNELS, width)
        self.conv_stem = conv(in_channels, channels, 3, stride=2, activation=jax.nn.relu6, **common)
        self.blocks, self.feature_specs = build_layers(
            layers_of(size),
            channels,
            width=width,
            output_stride=output_stride,
            dilate_all=True,
            conv=conv,
            drop_path=drop_path,
            **common,
        )

    def __call__(self, images: Array, *, train: bool, rngs: Rngs) -> Features:
        """Returns the last maps of strides 4, 8, 16 and 32 as "stage1" to "stage4"."""
        return run_layers(self.blocks, self.conv_stem(images, train=train), train=train, rngs=rngs)
