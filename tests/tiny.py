"""A network with three convolutions, for tests of everything around a network.

A ResNet-18 of any width takes XLA twenty seconds to compile; this takes one or two.
"""

import functools

import jax.numpy as jnp
from flax import nnx

from kdjax.models import FeatureSpec, Segmenter
from kdjax.models.heads import FCNHead
from kdjax.models.layers import ConvNorm


class Backbone(nnx.Module):
    def __init__(self, width, *, dtype, rngs, in_channels=3):
        self.stem = ConvNorm(in_channels, width, 3, stride=4, dtype=dtype, rngs=rngs)
        self.body = ConvNorm(width, 2 * width, 3, stride=2, dtype=dtype, rngs=rngs)
        self.width = width

    @property
    def feature_specs(self):
        return {"stage3": FeatureSpec(self.width, 4), "stage4": FeatureSpec(2 * self.width, 8)}

    def __call__(self, images, *, train, rngs):
        stem = self.stem(images, train=train)
        return {"stage3": stem, "stage4": self.body(stem, train=train)}


class Noisy(Backbone):
    """Keeps its own random state, and asks nobody whether it is training."""

    def __init__(self, width, *, dtype, rngs):
        super().__init__(width, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, images, *, train, rngs):
        features = super().__call__(images, train=train, rngs=None)
        return features | {"stage4": self.dropout(features["stage4"])}


def create(*, num_classes, width, auxiliary, dtype, rngs, backbone=Backbone, in_channels=3):
    more = {} if in_channels == 3 else {"in_channels": in_channels}
    backbone = backbone(width, dtype=dtype, rngs=rngs, **more)
    specs = backbone.feature_specs
    head = FCNHead(specs, width, num_classes, sources=("stage4",), dtype=dtype, rngs=rngs)
    auxiliary_head = None
    if auxiliary:
        auxiliary_head = FCNHead(
            specs, width, num_classes, sources=("stage3",), dtype=dtype, rngs=rngs
        )
    return Segmenter(
        backbone,
        head,
        auxiliary_head,
        num_classes=num_classes,
        dtype=jnp.dtype(dtype),
    )


def headless(*, num_classes, width, auxiliary, dtype, rngs):
    """Has no auxiliary head, whatever `auxiliary` says."""
    del auxiliary
    return create(num_classes=num_classes, width=width, auxiliary=False, dtype=dtype, rngs=rngs)


noisy = functools.partial(create, backbone=Noisy)
