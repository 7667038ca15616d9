"""Folding batch norm into convolutions keeps the maps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import thorough
from flax import nnx

from kdjax import models
from kdjax.distillation.feature_maps import array_of
from kdjax.models import NNXNetwork, maps_of, scores_of
from kdjax.models.folding import FrozenNetwork, fold_batch_norm
from kdjax.models.layers import ConvNorm

# Every head and every kind of backbone. Two have depthwise convolutions.
NAMES = ["tiny", "pspnet_r18"]
NAMES += [
    pytest.param(name, marks=pytest.mark.thorough)
    for name in ("deeplabv3plus_mbv2", "upernet_r18b", "fcn_hr18s", "segformer_b0")
]


def randomised(name):
    """Returns a network whose norms look as after training."""
    net = models.create(name, num_classes=5, width=4, auxiliary=True, rngs=nnx.Rngs(0))
    generator = np.random.default_rng(0)
    for _, module in nnx.iter_modules(net):
        if isinstance(module, nnx.BatchNorm):
            for variable, low, high in (
                *((module.mean, -1, 1), (module.var, 0.5, 2)),
                *((module.scale, 0.5, 1.5), (module.bias, -1, 1)),
            ):
                assert variable is not None
                drawn = generator.uniform(low, high, variable.shape)
                variable.set_value(jnp.asarray(drawn.astype(np.float32)))
    return net


def fold(net):
    network, variables = fold_batch_norm(*NNXNetwork.of(net))
    return network.module(variables)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("shallow")
def test_a_folded_network_gives_the_same_scores_and_has_no_batch_norm(name):
    net = randomised(name)
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(net)))
    network, variables = NNXNetwork.of(net)

    @jax.jit
    def scores(variables, images):
        """Returns the scores and the remaining statistics of both networks, from one program."""
        outputs, statistics = [], []
        for module in (network.module(variables), fold(network.module(variables))):
            output = module(images)
            outputs.append([x for x in (output.logits, output.aux_logits) if x is not None])
            statistics.append(nnx.state(module, nnx.BatchStat))
        return outputs, statistics

    images = np.random.default_rng(1).standard_normal((2, 33, 47, 3), np.float32)
    outputs, statistics = scores(variables, images)
    for expected, found in zip(*jax.device_get(outputs), strict=True):
        error = np.abs(found - expected).max() / np.abs(expected).max()
        assert error < 1e-5
    assert [bool(jax.tree.leaves(state)) for state in statistics] == [True, False]
    # The original network is unchanged.
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(net)), before)


def test_a_bias_before_the_norm_is_folded_too():
    module = ConvNorm(3, 4, 3, activation=None, dtype=jnp.float32, rngs=nnx.Rngs(0))
    module.conv.bias = nnx.Param(jnp.arange(4.0))
    module.conv.use_bias = True
    module.norm.mean[...] = jnp.full(4, 0.5)
    net = nnx.Dict(only=module)
    x = jnp.ones((1, 5, 5, 3))
    folded = fold(net)
    expected = module(x, train=False)
    np.testing.assert_allclose(folded.only(x, train=False), expected, rtol=1e-5, atol=1e-5)


def test_a_frozen_network_predicts_as_the_one_that_it_was_made_from():
    exact, variables = NNXNetwork.of(randomised("tiny"))
    network = models.make_network("tiny", num_classes=5, width=4, auxiliary=True, dtype="bfloat16")
    frozen = FrozenNetwork(network)
    arrays = frozen.freeze(variables)
    images = np.random.default_rng(1).standard_normal((2, 33, 47, 3), np.float32)

    @jax.jit
    def maps(variables, arrays):
        return [
            maps_of(each.apply(given, images, train=False, key=None)[0])
            for each, given in ((exact, variables), (network, variables), (frozen, arrays))
        ]

    expected, unfolded, folded = maps(variables, arrays)
    assert expected.keys() == folded.keys()
    for name in expected:
        true, *others = (
            array_of(found[name]).astype(np.float32) for found in (expected, unfolded, folded)
        )
        errors = [np.abs(other - true).max() / np.abs(true).max() for other in others]
        # Folding adds no error to that of bfloat16.
        assert errors[1] < max(1e-5, 2 * errors[0])
    with pytest.raises(ValueError, match="cannot be trained"):
        frozen.apply(arrays, images, train=True, key=jax.random.key(0))


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("name", thorough.after(1, ["tiny", "segformer_b0", "lraspp_mbv2"]))
def test_what_is_stored_in_bfloat16_changes_no_value(name):
    """Tests batch norm, layer norm, attention, and depthwise convolutions in bfloat16."""
    variables = NNXNetwork.of(randomised(name))[1]
    network = models.make_network(name, num_classes=5, width=4, dtype="bfloat16")
    frozen, (folded, arrays) = FrozenNetwork(network), fold_batch_norm(network, variables)
    stored = frozen.freeze(variables)
    images = np.random.default_rng(1).standard_normal((2, 32, 64, 3), np.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def logits(network, variables):
        output, _ = network.apply(variables, images, train=False, key=None)
        return scores_of(output)

    np.testing.assert_array_equal(logits(frozen, stored), logits(folded, arrays))
    halved = sum(x.size for x in jax.tree.leaves(stored["params"]) if x.dtype == jnp.bfloat16)
    assert halved > 0.5 * sum(x.size for x in jax.tree.leaves(stored["params"]))


def test_folding_twice_changes_nothing_more_and_training_is_refused():
    folded = fold(randomised("tiny"))
    again = fold(folded)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(folded), nnx.state(again))
    with pytest.raises(ValueError, match="cannot be trained"):
        folded(jnp.ones((1, 32, 32, 3)), train=True, rngs=nnx.Rngs(0))
