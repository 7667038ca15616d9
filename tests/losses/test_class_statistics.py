import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import close, few, labels, normal, seeds
from hypothesis import given
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from kdjax.losses import ClassStatistics

SHAPE = (6, 4, 5, 3)
update = jax.jit(ClassStatistics.update)


def stream(seed):
    """Features around a different level in each class, far from zero; class 3 never occurs."""
    truth = labels(seed, SHAPE[:-1], classes=3)
    levels = 100 * normal(seed + 1, (256, 3))
    return levels[truth] + normal(seed + 2, SHAPE), truth


def moments(features, truth, k):
    x = np.asarray(features[truth == k], np.float64)
    return len(x), x.mean(0), np.cov(x.T, bias=True)


@few
@given(seeds)
@pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])
def test_any_order_and_division_gives_the_moments_of_all_pixels(full, seed):
    features, truth = stream(seed)
    zeros = ClassStatistics.zeros(4, 3, full)
    steps = zeros
    for b in np.random.default_rng(seed).permutation(6):
        steps = update(steps, features[b], truth[b])
    merged = update(zeros, features[4:], truth[4:]).merge(update(zeros, features[:4], truth[:4]))
    for statistics in (steps, merged, update(zeros, features, truth)):
        for k in range(3):
            count, mean, covariance = moments(features, truth, k)
            assert statistics.count[k] == count
            close(statistics.mean[k], mean, 1e-6)
            close(statistics.covariance[k], covariance if full else np.diag(covariance), 1e-4)
        assert jnp.all(jnp.diagonal(jnp.atleast_2d(statistics.covariance[0])) >= 0)
        # A class that never occurs keeps its zeros.
        assert statistics.count[3] == 0
        np.testing.assert_array_equal(statistics.covariance[3], 0)


def test_a_class_absent_from_a_batch_is_unchanged():
    features, truth = stream(0)
    before = update(ClassStatistics.zeros(4, 3), features, truth)
    after = update(before, features + 7, np.where(truth == 1, 255, truth))
    for field in ("count", "mean", "covariance"):
        np.testing.assert_array_equal(getattr(after, field)[1], getattr(before, field)[1])
        assert not np.array_equal(getattr(after, field)[0], getattr(before, field)[0])
    nothing = before.update(features, np.full_like(truth, 2), ignore_label=2)
    jax.tree.map(np.testing.assert_array_equal, nothing, before)


def test_pixels_that_are_left_out_may_hold_anything():
    features, truth = stream(0)
    before = update(ClassStatistics.zeros(4, 3), features, truth)
    features = np.where(truth[..., None] == 255, np.float32("nan"), features)
    features = np.where(truth[..., None] == 2, np.float32("inf"), features)
    after = update(ClassStatistics.zeros(4, 3), features, np.where(truth == 2, 9, truth))
    for field in ("count", "mean", "covariance"):
        np.testing.assert_array_equal(getattr(after, field)[:2], getattr(before, field)[:2])
        np.testing.assert_array_equal(getattr(after, field)[2:], 0)


def test_a_few_pixels_move_a_large_count():
    features, truth = stream(0)
    statistics = update(ClassStatistics.zeros(4, 3), features, truth)
    statistics = dataclasses.replace(statistics, count=jnp.full(4, 2**26))
    few = np.full_like(truth, 255)
    few[0, 0, :3] = 1
    for _ in range(2):
        statistics = update(statistics, features, few)
    np.testing.assert_array_equal(statistics.count, [2**26, 2**26 + 6, 2**26, 2**26])
    # There it ends, and does not wrap around.
    full = dataclasses.replace(statistics, count=jnp.full(4, 2**31 - 2))
    counts = update(full, features, few).count
    np.testing.assert_array_equal(counts, [2**31 - 2, 2**31 - 1, 2**31 - 2, 2**31 - 2])


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices (tests/conftest.py)")
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])
def test_a_batch_over_eight_devices_counts_as_one(full, axis_type):
    features, truth = (np.concatenate([x, x[:2]]) for x in stream(0))
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(axis_type,))
    spread = jax.device_put((features, truth), NamedSharding(mesh, PartitionSpec("batch")))
    zeros = ClassStatistics.zeros(4, 3, full)
    each = jax.shard_map(
        functools.partial(ClassStatistics.update, axis_name="batch"),
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("batch"), PartitionSpec("batch")),
        out_specs=PartitionSpec(),  # the same on every device
    )
    expected = update(zeros, features, truth)
    for found in (update(zeros, *spread), jax.jit(each)(zeros, *spread)):
        np.testing.assert_array_equal(found.count, expected.count)
        jax.tree.map(lambda a, b: close(a, b, 1e-6), found, expected)


def test_half_precision_features_have_float32_statistics():
    features, truth = stream(0)
    features = jnp.asarray(features, jnp.bfloat16)
    statistics = update(ClassStatistics.zeros(4, 3), features, truth)
    exact = update(ClassStatistics.zeros(4, 3), features.astype(jnp.float32), truth)
    assert statistics.mean.dtype == statistics.covariance.dtype == jnp.float32
    jax.tree.map(lambda a, b: close(a, b, 1e-6), statistics, exact)


def test_features_receive_no_gradient():
    features, truth = stream(0)
    zeros = ClassStatistics.zeros(4, 3)
    gradient = jax.grad(lambda x: zeros.update(x, truth).covariance.sum())(features)
    np.testing.assert_array_equal(gradient, 0.0)
