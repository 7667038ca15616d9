"""Networks without values, and weights for them as other projects name and lay them out."""

import functools

import numpy as np
from flax import nnx

from kdjax import models
from kdjax.interop import mmseg
from kdjax.models.adapters import traced_rngs


def abstract(name, **settings):
    """A network of shapes alone, to set the weights of."""
    return nnx.clone(_traced(name, **{"num_classes": 5, "width": 4, **settings}))


@functools.cache
def _traced(name, **settings):
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


def segformer_weights(channels, decoder, classes=5):
    """Random weights with the names of CIRKD's SegFormer, one block in each stage."""
    rng = np.random.default_rng(0)
    weights = {}

    def add(name, *shape):
        weights[f"{name}.weight"] = rng.standard_normal(shape, np.float32)
        weights[f"{name}.bias"] = rng.standard_normal(shape[:1], np.float32)

    before = 3
    for i, (c, reduction) in enumerate(zip(channels, (8, 4, 2, 1), strict=True), 1):
        size, block = 7 if i == 1 else 3, f"block{i}.0"
        add(f"patch_embed{i}.proj", c, before, size, size)
        for norm in (f"patch_embed{i}.norm", f"{block}.norm1", f"{block}.norm2", f"norm{i}"):
            add(norm, c)
        add(f"{block}.attn.q", c, c)
        add(f"{block}.attn.kv", 2 * c, c)
        add(f"{block}.attn.proj", c, c)
        if reduction > 1:
            add(f"{block}.attn.sr", c, c, reduction, reduction)
            add(f"{block}.attn.norm", c)
        add(f"{block}.mlp.fc1", 4 * c, c)
        add(f"{block}.mlp.dwconv.dwconv", 4 * c, 1, 3, 3)
        add(f"{block}.mlp.fc2", c, 4 * c)
        add(f"linear_c{i}.proj", decoder, c)
        before = c
    add("linear_fuse.0", decoder, 4 * decoder, 1, 1)
    add("linear_fuse.1", decoder)
    weights["linear_fuse.1.running_mean"] = rng.standard_normal(decoder, np.float32)
    weights["linear_fuse.1.running_var"] = 1 + rng.random(decoder, np.float32)
    add("linear_pred", classes, decoder, 1, 1)
    return weights
