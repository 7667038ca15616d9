"""The convolution's gradient by products, compared with XLA's."""

import functools

import jax
import jax.numpy as jnp
import meshes
import numpy as np
import pytest
from jax.sharding import AxisType

from kdjax.models import convolution as module
from kdjax.models.convolution import convolution

POINTWISE = {"stride": 1, "dilation": 1, "padding": ((0, 0), (0, 0))}
SQUARE = {"stride": 1, "dilation": 2, "padding": ((2, 2), (1, 3))}


@pytest.mark.parametrize(("size", "options"), [(1, POINTWISE), (1, SQUARE), (3, SQUARE)])
def test_values_and_gradients_are_those_of_xla(size, options, monkeypatch):
    monkeypatch.setattr(module, "LEAST_CHANNELS", 3)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 9, 7, 3)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(size, size, 3, 5)), jnp.float32)

    def by_xla(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            options["padding"],
            rhs_dilation=(options["dilation"],) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    ours = functools.partial(convolution, **options)
    assert "custom_vjp_call" in str(jax.make_jaxpr(ours)(x, kernel))

    def results(function):
        out, pull = jax.vjp(function, x, kernel)
        return out, *pull(jnp.cos(out))

    for mine, expected in zip(results(ours), results(by_xla), strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=2e-5)


def test_only_kernels_for_which_products_are_faster_have_them():
    def jaxpr(size, channels, stride):
        x, kernel = jnp.zeros((1, 8, 8, channels)), jnp.zeros((size, size, channels, 64))
        options = {"stride": stride, "dilation": 1, "padding": ((1, 1), (1, 1))}
        return str(jax.make_jaxpr(functools.partial(convolution, **options))(x, kernel))

    assert "custom_vjp_call" in jaxpr(3, 64, 1)
    assert "custom_vjp_call" in jaxpr(1, 3, 1)
    assert "custom_vjp_call" not in jaxpr(3, 32, 1)
    assert "custom_vjp_call" not in jaxpr(3, 64, 2)
    assert "custom_vjp_call" not in jaxpr(1, 64, 2)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("kind", AxisType.__members__)
def test_a_batch_over_devices_has_the_gradient_of_one_device(kind, size, monkeypatch):
    monkeypatch.setattr(module, "LEAST_CHANNELS", 3)
    images = jax.random.normal(jax.random.key(0), (8, 9, 8, 3))
    kernel = jax.random.normal(jax.random.key(1), (size, size, 3, 4))
    padding = ((size // 2, size // 2),) * 2

    def loss(images, kernel):
        y = convolution(images, kernel, stride=1, dilation=1, padding=padding)
        return jnp.sum(jnp.sin(y))

    meshes.check_gradient(loss, images, kernel, kind)
