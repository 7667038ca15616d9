"""How pixels become a network's input; it belongs to the network, not to the data."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8


class Preprocessing(NamedTuple):
    """Mean and standard deviation of each channel, in the units of 8-bit RGB pixels."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, images: UInt8[Array, "B H W 3"]) -> Float[Array, "B H W 3"]:
        """Normalises 8-bit RGB images."""
        return (images.astype(jnp.float32) - jnp.array(self.mean)) / jnp.array(self.std)


IMAGENET = Preprocessing(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
# What projects in the tradition of Caffe use, as CIRKD and TorchDistiller.
MEAN_ONLY = Preprocessing(mean=(122.67891434, 116.66876762, 104.00698793), std=(1.0, 1.0, 1.0))
