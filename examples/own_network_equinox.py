"""A network of your own in Equinox, as the student of a config: any object with `init` and `apply`.

    pip install equinox
    python -m kdjax train --config configs/shapes_pspnet_r18_teacher.py --workdir runs/teacher
    python -m kdjax train --config examples/own_network_equinox.py --workdir runs/own_equinox

kdjax uses only the two methods `init` and `apply`. A library without modules, for example plain
functions of nested dicts, works in the same way.
"""

import equinox as eqx
import jax
import jax.numpy as jnp

from kdjax import recipes
from kdjax.config import Config, network, term


class Stack(eqx.Module):
    """Convolutions with group norm for one image in Equinox's layout, [3, H, W]."""

    layers: list
    norms: list
    classifier: eqx.nn.Conv2d

    def __init__(self, num_classes, channels, key):
        keys = jax.random.split(key, len(channels) + 1)
        sizes = zip((3, *channels), channels, keys, strict=False)
        self.layers = [eqx.nn.Conv2d(a, b, 3, stride=2, padding=1, key=k) for a, b, k in sizes]
        self.norms = [eqx.nn.GroupNorm(4, size) for size in channels]
        self.classifier = eqx.nn.Conv2d(channels[-1], num_classes, 1, key=keys[-1])

    def __call__(self, image):
        """Returns the class scores and the features that the classifier reads."""
        for layer, norm in zip(self.layers, self.norms, strict=True):
            image = jax.nn.relu(norm(layer(image)))
        return self.classifier(image), image


class Network:
    """The interface that kdjax needs: variables, and a pure function of them.

    Args:
      num_classes: passed by kdjax.
      channels: the channels of the layers, from `config.student.options`.
    """

    def __init__(self, *, num_classes, channels=(16, 32, 64)):
        self._make = lambda key: Stack(num_classes, channels, key)
        abstract = eqx.filter_eval_shape(self._make, jax.random.key(0))
        self._static = eqx.filter(abstract, _is_array, inverse=True)

    def init(self, key, images):
        """Returns the arrays of the module as the parameters. The network has no state."""
        del images
        return {"params": eqx.filter(self._make(key), eqx.is_array), "state": {}}

    def apply(self, variables, images, *, train, key):
        """Converts between channels last, as in kdjax, and channels first, as in Equinox."""
        del train, key
        module = eqx.combine(variables["params"], self._static)
        maps = jax.vmap(module)(jnp.moveaxis(images, -1, 1))
        logits, head = (jnp.moveaxis(x, 1, -1) for x in maps)
        return {"logits": logits, "head": head}, variables


def _is_array(leaf):
    return isinstance(leaf, jax.ShapeDtypeStruct)


def get_config() -> Config:
    """Returns the config: the quickstart's shapes, distilled from the teacher's scores."""
    config = recipes.shapes()
    config.teacher.checkpoint = "runs/teacher"
    with config.unlocked():
        config.student.update(network("own_network_equinox:Network", channels=(16, 32, 64)))
        config.terms.cwd = term("cwd")
    return config
