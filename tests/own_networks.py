"""Networks as users write them: in NNX, in Linen, by a bridge, and in nothing."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from kdjax.models import BatchNorm


class InNNX(nnx.Module):
    """With batch norm, and dropout that draws from its own random state."""

    def __init__(self, *, num_classes, rngs, channels=8):
        self.stem = nnx.Conv(3, channels, (3, 3), strides=4, rngs=rngs)
        self.norm = nnx.BatchNorm(channels, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.classifier = nnx.Conv(channels, num_classes, (1, 1), rngs=rngs)

    def __call__(self, images):
        head = self.dropout(nnx.relu(self.norm(self.stem(images))))
        return {"logits": self.classifier(head), "head": head}


class Grouped(nnx.Module):
    """With kdjax's batch norm, and told whether it is training."""

    def __init__(self, *, num_classes, rngs, dtype):
        self.stem = nnx.Conv(3, 8, (3, 3), strides=4, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(8, dtype=dtype, rngs=rngs)
        self.classifier = nnx.Conv(8, num_classes, (1, 1), rngs=rngs)

    def __call__(self, images, *, train):
        return self.classifier(self.norm(self.stem(images), use_running_average=not train))


class InLinen(linen.Module):
    num_classes: int
    channels: int = 8

    @linen.compact
    def __call__(self, images, train):
        x = linen.Conv(self.channels, (3, 3), (4, 4))(images)
        x = linen.relu(linen.BatchNorm(use_running_average=not train)(x))
        head = linen.Dropout(0.5, deterministic=not train)(x)
        return {"logits": linen.Conv(self.num_classes, (1, 1))(head), "head": head}


def bridged(*, num_classes, rngs, channels=8):
    return nnx.bridge.ToNNX(InLinen(num_classes, channels), rngs=rngs)


class Plain:
    """Counts its training steps, and draws noise."""

    def __init__(self, num_classes, channels=8):
        self.shape = (3, num_classes)
        self.channels = channels

    def init(self, key, images):
        kernel = 0.1 * jax.random.normal(key, (self.channels, *self.shape))
        return {"params": {"kernel": kernel}, "state": {"steps": jnp.zeros((), jnp.int32)}}

    def apply(self, variables, images, *, train, key):
        x = images[:, ::4, ::4]
        steps = variables["state"]["steps"]
        if train:
            x += 0.1 * jax.random.normal(key, x.shape)
            steps += 1
        head = jnp.einsum("bhwi,cik->bhwck", x, variables["params"]["kernel"])
        logits = head.mean(-2)
        return logits, {"params": variables["params"], "state": {"steps": steps}}


def five_classes():
    return Plain(5)


class Elsewhere:
    """A network of another framework, which is called and never traced."""

    def init(self, key, images):
        return {"params": {}, "state": {}}

    def apply(self, variables, images, *, train, key):
        shape = jax.ShapeDtypeStruct(
            (images.shape[0], images.shape[1] // 4, images.shape[2] // 4, 3), jnp.float32
        )
        return jax.pure_callback(self._run, shape, images), variables

    @staticmethod
    def _run(images):
        return np.asarray(images)[:, ::4, ::4] ** 3


def trained():
    """A teacher that brings its variables, and says its classes."""
    network = Plain(3)
    network.class_names = ("a", "b", "c")
    return network


def exits(*, num_classes):
    raise SystemExit(0)


def broken(*, num_classes):
    raise RuntimeError("no such weights")


narrow = functools.partial(InNNX, channels=2)


def of_two_axes(*, num_classes):
    class Flat(Plain):
        def apply(self, variables, images, *, train, key):
            output, variables = super().apply(variables, images, train=train, key=key)
            return output.reshape(output.shape[0], -1), variables

    return Flat(num_classes)


def without_logits(*, num_classes):
    class Other:
        def __init__(self, plain):
            self.init, self._apply = plain.init, plain.apply

        def apply(self, variables, images, *, train, key):
            output, variables = self._apply(variables, images, train=train, key=key)
            return {"scores": output}, variables

    return Other(Plain(num_classes))


class Faulty(Plain):
    """Fails where `fault` says, and nowhere else."""

    def __init__(self, num_classes, fault=""):
        super().__init__(num_classes)
        self.fault = fault

    def apply(self, variables, images, *, train, key):
        logits, variables = super().apply(variables, images, train=train, key=key)
        match self.fault:
            case "raises in evaluation" if not train:
                raise RuntimeError("no predictions\nhere")
            case "evaluates two images" if not train:
                logits = logits[:2]
            case "no rows":
                logits = logits[:, :0]
            case "integer":
                logits = logits.astype(jnp.int32)
            case "complex":
                logits = logits.astype(jnp.complex64)
            case "complex map":
                maps: Any = {"logits": logits, "phase": logits.astype(jnp.complex64)}
                return maps, variables
            case "state grows" if train:
                variables = {**variables, "state": {"steps": jnp.zeros(2)}}
            case "state goes" if train:
                variables = {**variables, "state": {}}
            case "takes crops alone" if images.shape[1:3] != (16, 16):
                raise ValueError("images must be 16 x 16")
        return logits, variables
