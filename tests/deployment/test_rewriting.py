"""Networks rewritten for other runtimes compute the same, with batch norm folded or not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

from kdjax import models
from kdjax.deployment.rewriting import fold_batch_norm, plain, plain_convolutions
from kdjax.models import NNXNetwork
from kdjax.models.layers import ConvNorm

# Every head and every kind of backbone; depthwise convolutions in two of them.
NAMES = ["tiny", "pspnet_r18"]
NAMES += [
    pytest.param(name, marks=pytest.mark.thorough)
    for name in ("deeplabv3plus_mbv2", "upernet_r18b", "fcn_hr18s", "segformer_b0")
]


def randomised(name):
    """A network whose norms have statistics, scales and biases as after training."""
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
        """Of both networks, and what is left of statistics: one program."""
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
    # The network that was given is as it was.
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


def test_folding_twice_changes_nothing_more_and_training_is_refused():
    folded = fold(randomised("tiny"))
    again = fold(folded)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(folded), nnx.state(again))
    with pytest.raises(ValueError, match="cannot be trained"):
        folded(jnp.ones((1, 32, 32, 3)), train=True, rngs=nnx.Rngs(0))


def operations(function, shape):
    return jax.make_jaxpr(function)(jax.ShapeDtypeStruct(shape, jnp.float32)).jaxpr.eqns


def test_a_plain_function_has_no_calls_and_its_constants_stand_on_the_right():
    def function(x):
        larger = jax.image.resize(x, (2, 5, 7, 3), "bilinear", antialias=False)
        return jax.jit(nnx.relu6)(larger) @ jnp.full((3, 4), 0.5)

    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 3))
    np.testing.assert_allclose(plain(function)(x), function(x), atol=1e-5)
    equations = operations(plain(function), x.shape)
    assert {"jit", "custom_jvp_call", "iota"}.isdisjoint(e.primitive.name for e in equations)
    products = [e for e in equations if e.primitive.name == "dot_general"]
    assert len(products) == 3
    assert all(len(product.invars[1].aval.shape) == 2 for product in products)


def test_an_open_batch_is_padded_by_concatenation():
    def function(x):
        return jnp.pad(x, ((0, 0), (1, 2), (0, 3)), constant_values=5.0)

    (batch,) = export.symbolic_shape("b")
    names = [e.primitive.name for e in operations(plain(function), (batch, 3, 4))]
    assert "pad" not in names
    assert names.count("concatenate") == 2
    written = export.export(jax.jit(plain(function)))(
        jax.ShapeDtypeStruct((batch, 3, 4), jnp.float32)
    )
    x = jnp.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_array_equal(written.call(x), function(x))


@pytest.mark.usefixtures("shallow")
def test_plain_convolutions_score_as_those_for_xla():
    network, variables = NNXNetwork.of(randomised("deeplabv3plus_mbv2"))
    whole = plain_convolutions(network)
    images = jnp.asarray(np.random.default_rng(1).standard_normal((1, 32, 48, 3), np.float32))

    def scores(network):
        return lambda x: network.apply(variables, x, train=False, key=None)[0].logits

    found, expected = (jax.jit(scores(each))(images) for each in (whole, network))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    written = operations(plain(scores(whole)), images.shape)
    convolutions = [e for e in written if e.primitive.name == "conv_general_dilated"]
    assert max(e.params["feature_group_count"] for e in convolutions) > 1
    names = [e.primitive.name for e in written]
    # Those of resizing alone: every convolution is one.
    assert names.count("dot_general") <= 6
