"""The same small network in Flax NNX, in Flax Linen, and as an object that knows no framework.

Each normalizes its batch and keeps running statistics, and draws random numbers in training: by a
module of its own, by Linen's streams, from the key.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen, nnx


class Nnx(nnx.Module):
    """Keeps its own random state, and goes by `eval()`."""

    def __init__(self, *, num_classes, rngs, channels=8):
        self.stem = nnx.Conv(3, channels, (3, 3), strides=4, rngs=rngs)
        self.norm = nnx.BatchNorm(channels, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Conv(channels, num_classes, (1, 1), rngs=rngs)

    def __call__(self, images):
        """The scores, and the features that they are made of."""
        features = nnx.relu(self.norm(self.stem(images)))
        return {"logits": self.head(self.dropout(features)), "stage4": features}


class Linen(linen.Module):
    """Is told whether it trains."""

    num_classes: int
    channels: int = 8

    @linen.compact
    def __call__(self, images, train=False):
        """The scores, and the features that they are made of."""
        x = linen.Conv(self.channels, (3, 3), strides=4)(images)
        features = linen.relu(linen.BatchNorm(use_running_average=not train)(x))
        x = linen.Dropout(0.2, deterministic=not train)(features)
        return {"logits": linen.Conv(self.num_classes, (1, 1))(x), "stage4": features}


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Weights:
    """What is trained of `Plain`; no dict, as modules of Equinox are none."""

    stem: jax.Array
    head: jax.Array


class Plain:
    """Arrays and functions."""

    def __init__(self, *, num_classes, channels=8):
        self.num_classes, self.channels = num_classes, channels

    def init(self, key, images):
        """What is trained, and the running mean."""
        del images
        stem, head = jax.random.split(key)
        params = Weights(
            stem=0.2 * jax.random.normal(stem, (3, 3, 3, self.channels)),
            head=0.2 * jax.random.normal(head, (self.channels, self.num_classes)),
        )
        return {"params": params, "state": {"mean": jnp.zeros(self.channels)}}

    def apply(self, variables, images, *, train, key):
        """The scores, and the features that they are made of."""
        params, state = variables["params"], variables["state"]
        layout = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(
            images, params.stem, (4, 4), "SAME", dimension_numbers=layout
        )
        mean = state["mean"]
        if train:
            mean = jnp.mean(x, axis=(0, 1, 2))
            state = {"mean": 0.9 * state["mean"] + 0.1 * mean}
        features = jax.nn.relu(x - mean)
        noise = 0.1 * jax.random.normal(key, features.shape) if train else 0.0
        maps = {"logits": (features + noise) @ params.head, "stage4": features}
        return maps, {"params": params, "state": state}
