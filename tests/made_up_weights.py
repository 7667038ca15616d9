"""Networks without values, and weights for them as mmsegmentation names and lays them out."""

import numpy as np
from flax import nnx

from kdjax import models
from kdjax.interop import mmseg
from kdjax.models.keys import traced_rngs


def abstract(name, **settings):
    settings = {"num_classes": 5, "width": 4, **settings}
    return nnx.eval_shape(lambda: models.create(name, rngs=traced_rngs(0), **settings))


def random_weights(net):
    """Weights as mmsegmentation would name and lay them out."""
    generator = np.random.default_rng(0)
    return {
        name: generator.standard_normal(mmseg.torch_shape(leaf), np.float32)
        for name, leaf in mmseg.leaves(net).items()
    }


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
