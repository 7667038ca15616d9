"""The depthwise convolution and its gradient, compared with XLA's grouped convolution."""

import jax
import jax.numpy as jnp
import meshes
import numpy as np
import pytest
import thorough
from jax.sharding import AxisType

from kdjax.models import depthwise
from kdjax.models.depthwise import depthwise_convolution


@pytest.mark.parametrize(
    ("height", "width", "size", "stride", "dilation"),
    thorough.after(
        2,
        [
            *[(10, 13, 3, 2, 1), (13, 10, 5, 1, 2), (9, 12, 3, 1, 1)],
            *[(11, 14, 5, 2, 1), (8, 8, 3, 3, 2)],
        ],
    ),
)
def test_values_and_gradients_are_those_of_a_grouped_convolution(
    height, width, size, stride, dilation
):
    rng = np.random.default_rng(0)
    padded, kernel = rng.normal(size=(2, height, width, 4)), rng.normal(size=(size, size, 4))
    arguments = jnp.asarray(padded, jnp.float32), jnp.asarray(kernel, jnp.float32)

    def grouped(padded, kernel):
        return jax.lax.conv_general_dilated(
            padded,
            kernel[:, :, None],
            (stride, stride),
            "VALID",
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=4,
        )

    @jax.jit
    def both(padded, kernel):
        def ours(padded, kernel):
            return depthwise_convolution(padded, kernel, stride, dilation)

        results = []
        for function in (ours, grouped):
            out, pull = jax.vjp(function, padded, kernel)
            results.append((out, *pull(jnp.cos(out))))
        return results

    for found, expected in zip(*both(*arguments), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-5)

    # The computation on accelerators.
    slope = jnp.cos(grouped(*arguments))
    by_kernel = depthwise._by_kernel_at_once(size, stride, dilation, arguments[0], slope)
    np.testing.assert_allclose(by_kernel, both(*arguments)[1][2], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("kind", AxisType.__members__)
def test_a_batch_over_devices_has_the_gradient_of_one_device(kind):
    images = jax.random.normal(jax.random.key(0), (8, 9, 8, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3))

    def loss(images, kernel):
        return jnp.sum(jnp.sin(depthwise_convolution(images, kernel, 2, 1)))

    meshes.check_gradient(loss, images, kernel, kind)
