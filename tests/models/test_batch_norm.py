"""The statistics of batch norm are as exact as PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kdjax.models.batch_norm import BatchNorm, group_batch_norm


@pytest.mark.parametrize("groups", [1, 2])
def test_a_mean_that_is_large_beside_the_deviation_costs_no_digits(groups):
    # One pass over the squares is wrong by 126 deviations here.
    x = np.random.default_rng(0).normal(1000, 0.1, (8, 16, 16, 3)).astype(np.float32)
    norm = BatchNorm(3, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    group_batch_norm(nnx.List([norm]), groups)
    out = norm(jnp.asarray(x), use_running_average=False)
    parts = x.astype(np.float64).reshape(groups, -1, 3)
    var = parts.var(1, keepdims=True)
    expected = (parts - parts.mean(1, keepdims=True)) / np.sqrt(var + 1e-5)
    # float32 stores a value near 1000, and a mean of such values, to 6e-5.
    np.testing.assert_allclose(out, expected.reshape(x.shape), atol=1e-3)
    unbiased = parts.var(1, ddof=1).mean(0)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * unbiased, rtol=1e-6)


@pytest.mark.torch
@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (3.0, 0.5), (1000.0, 0.1)])
def test_values_statistics_and_gradients_are_pytorchs(mean, deviation):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    rng = np.random.default_rng(1)
    x = rng.normal(mean, deviation, (4, 6, 5, 3)).astype(np.float32)
    weights = rng.normal(size=x.shape).astype(np.float32)
    norm = BatchNorm(3, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(norm)

    def loss(x):
        module = nnx.merge(graphdef, state, copy=True)
        out = module(x, use_running_average=False)
        return jnp.sum(jnp.sin(out) * weights), (out, module.mean[...], module.var[...])

    gradient, (out, kept_mean, kept_var) = jax.grad(loss, has_aux=True)(jnp.asarray(x))

    theirs = torch.nn.BatchNorm2d(3)
    given = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).requires_grad_()
    wanted = theirs(given)
    (wanted.sin() * torch.from_numpy(weights.transpose(0, 3, 1, 2).copy())).sum().backward()

    def close(mine, theirs, tolerance):
        theirs = theirs.detach().numpy()
        if theirs.ndim == 4:
            theirs = theirs.transpose(0, 2, 3, 1)
        np.testing.assert_allclose(mine, theirs, atol=tolerance * np.abs(theirs).max())

    # The rounding of a mean of float32 values, in deviations.
    tolerance = 2e-6 + 2 * np.finfo(np.float32).eps * mean / deviation
    close(out, wanted, tolerance)
    close(kept_mean, theirs.running_mean, 1e-6)
    close(kept_var, theirs.running_var, 1e-6)
    close(gradient, given.grad, 2 * tolerance)
