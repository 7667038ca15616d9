"""Networks rewritten for other runtimes compute the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

from kdjax import models
from kdjax.deployment.rewriting import plain, plain_convolutions
from kdjax.models import NNXNetwork


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
    net = models.create("deeplabv3plus_mbv2", num_classes=5, width=4, rngs=nnx.Rngs(0))
    network, variables = NNXNetwork.of(net)
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
    # Only resizes use products, because each convolution is a single operation.
    assert names.count("dot_general") <= 6
