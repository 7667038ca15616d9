"""Convolutions in int8: how they are rounded, and what stays as it is."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from kdjax import models
from kdjax.distillation.feature_maps import array_of
from kdjax.errors import UserError
from kdjax.models import NNXNetwork
from kdjax.models.int8 import Int8Network, check_platform
from kdjax.models.layers import Conv, ConvNorm, DepthwiseConv
from kdjax.models.network import LinenNetwork, arrays_by_path

qwix = pytest.importorskip("qwix", reason='qwix is not installed: pip install "kdjax[int8]"')
RNG = np.random.default_rng(0)
# What qwix takes to the largest number, 127: all that is rounded to it.
BOUND = 127.5


class Two(nnx.Module):
    """A depthwise convolution, then one with batch norm."""

    def __init__(self, rngs):
        self.first = DepthwiseConv(3, 3, bias=True, dtype=jnp.float32, rngs=rngs)
        self.second = ConvNorm(3, 4, 3, activation=None, dtype=jnp.float32, rngs=rngs)

    def __call__(self, x):
        return self.second(self.first(x), train=False)


def quantized(network, images):
    """The network in int8, its variables, and those of before."""
    made, variables = Int8Network(network), network.init(jax.random.key(0), images)
    return made, made.quantize(variables, images), variables


def kernels(variables):
    return [x for path, x in arrays_by_path(variables["params"]).items() if "kernel" in path]


def test_a_convolution_is_that_of_the_rounded_maps_and_kernels():
    images = RNG.standard_normal((5, 8, 8, 3)).astype(np.float32)
    network = NNXNetwork(Two)
    made, variables, before = quantized(network, images)
    module = network.module(before)
    # The norm's own statistics are 0 and 1: folded, it divides by their deviation.
    kernel = np.asarray(module.second.conv.kernel[...], np.float64) / np.sqrt(1 + 1e-5)
    found = variables["params"]["second"]["conv"]["kernel"]["array"]
    by_channel = np.abs(kernel).max((0, 1, 2)) / BOUND
    np.testing.assert_allclose(found["scale"].ravel(), by_channel, rtol=1e-6)
    # What is half-way between two numbers, as the largest, goes to either.
    assert np.abs(np.asarray(found["qvalue"], np.float64) - kernel / by_channel).max() < 0.50001
    x = np.asarray(module.first(images), np.float64)
    across = np.abs(x).max((1, 2, 3)).mean() / BOUND
    assert (np.abs(x / across) > BOUND).any()  # some are cut off
    products = jax.lax.conv_general_dilated(
        np.clip(np.round(x / across), -128, 127).astype(np.int32),
        np.asarray(found["qvalue"], np.int32),
        (1, 1),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    expected = np.asarray(products, np.float64) * across * by_channel
    output, _ = made.apply(variables, images, train=False, key=None)
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5)
    exact, _ = network.apply(before, images, train=False, key=None)
    assert 0 < np.abs(output - exact).mean() < 0.02 * np.std(exact)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.usefixtures("shallow")
def test_a_network_in_int8_keeps_its_other_layers_and_its_maps(dtype):
    network = models.make_network(
        "fpn_light_efficientnet_lite0", num_classes=5, width=8, dtype=dtype
    )
    images = RNG.standard_normal((2, 64, 64, 3)).astype(np.float32)
    made, variables, before = quantized(network, images)
    parts = [part for _, part in nnx.iter_modules(network.module(before))]
    convolutions = sum(isinstance(part, Conv) for part in parts)
    depthwise = sum(isinstance(part, DepthwiseConv) for part in parts)
    types = [kernel.dtype for kernel in kernels(variables)]
    assert depthwise > 0
    assert types.count(jnp.int8) == convolutions - depthwise
    assert made.preprocessing == network.preprocessing
    apply = jax.jit(lambda variables: made.apply(variables, images, train=False, key=None)[0])
    expected, _ = network.apply(before, images, train=False, key=None)
    for name, found in models.maps_of(apply(variables)).items():
        value, other = array_of(found), array_of(models.maps_of(expected)[name])
        assert (value.shape, value.dtype) == (other.shape, other.dtype)
        assert jnp.isfinite(value.astype(jnp.float32)).all()


def test_what_has_no_such_convolution_is_refused():
    with pytest.raises(UserError, match="must be a network of Flax NNX"):
        Int8Network(LinenNetwork(linen.Dense(3)))
    with pytest.raises(UserError, match="needs convolutions, and this one has none"):
        Int8Network(NNXNetwork(lambda rngs: nnx.Linear(3, 4, rngs=rngs)))


def test_without_qwix_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(UserError, match=r'needs qwix: pip install "kdjax\[int8\]"'):
        Int8Network(NNXNetwork(Two))


@pytest.mark.parametrize("platform", ["gpu", "cuda"])
def test_gpus_are_refused(platform):
    with pytest.raises(UserError, match="no convolutions in int8 for GPUs; set it to False"):
        check_platform(platform)
    check_platform("tpu")
