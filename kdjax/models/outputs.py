"""The output of a network, the specs of its maps, and the normalization of its input."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Shaped

from kdjax.distillation import Classification, Maps


class FeatureSpec(NamedTuple):
    """A named feature map: its channel count and its stride relative to the image."""

    channels: int
    stride: int


STAGES = ("stage1", "stage2", "stage3", "stage4")


def stage_specs(channels: Sequence[int]) -> dict[str, FeatureSpec]:
    """Returns the specs of four stages with these channels and strides 4, 8, 16 and 32."""
    strides = (4, 8, 16, 32)
    return {name: FeatureSpec(*spec) for name, *spec in zip(STAGES, channels, strides, strict=True)}


@struct.dataclass
class SegmentationOutput:
    """The output of a network on images [B, H, W, C].

    Attributes:
      logits: class scores [B, h, w, K] at the network's own stride.
      aux_logits: class scores of the auxiliary head, if there is one.
      features: feature maps [B, h, w, C] by name. jit drops unused ones.
      classifiers: inputs and weights of the classifiers of "logits" and "aux_logits".
    """

    logits: Float[Array, "B h w K"]
    aux_logits: Float[Array, "B h w K"] | None
    features: dict[str, Float[Array, "B h w C"]]
    classifiers: dict[str, Classification]

    @property
    def maps(self) -> Maps:
        """All maps by name, for distillation. Scores come with their classifier."""
        scores = {"logits": self.logits}
        if self.aux_logits is not None:
            scores["aux_logits"] = self.aux_logits
        return {**self.features, **scores, **self.classifiers}


class Preprocessing(NamedTuple):
    """The way from images to the input of a network.

    Attributes:
      mean: the mean of each channel, in the units of the images: 8-bit RGB pixels for photos.
      std: the standard deviation of each channel.
      bands: the bands of the images that become the channels, in their order; empty for all.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    bands: tuple[int, ...] = ()

    def __call__(self, images: Shaped[Array, "B H W N"]) -> Float[Array, "B H W C"]:
        """Normalizes images."""
        if self.bands:
            images = images[..., jnp.array(self.bands)]
        return (images.astype(jnp.float32) - jnp.array(self.mean)) / jnp.array(self.std)


IMAGENET = Preprocessing(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
# Of projects in the tradition of Caffe, such as CIRKD and TorchDistiller.
MEAN_ONLY = Preprocessing(mean=(122.67891434, 116.66876762, 104.00698793), std=(1.0, 1.0, 1.0))
EFFICIENTNET_LITE = Preprocessing(mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0))
