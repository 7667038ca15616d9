"""What holds for every loss: one number under every transformation, and never an infinite one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import EVERY, IMITATION, SHAPE, close, few, labels, normal, seeds
from hypothesis import given
from jax.sharding import AxisType, NamedSharding, PartitionSpec

every = pytest.mark.parametrize("loss", EVERY.values(), ids=EVERY.keys())
imitation = pytest.mark.parametrize("loss", IMITATION.values(), ids=IMITATION.keys())


def batch(seed=0, shape=SHAPE):
    return normal(seed, shape), normal(seed + 1, shape), labels(seed + 2, shape[:-1])


def mean_and_gradient(loss):
    return jax.value_and_grad(lambda student, *rest: jnp.mean(loss(student, *rest)))


@functools.cache
def compiled(loss):
    """One compilation for all tests that only look at values."""
    return jax.jit(mean_and_gradient(loss))


@every
def test_jit_and_checkpoint_change_nothing(loss):
    arguments = batch()
    value, gradient = compiled(loss)(*arguments)
    for other in (mean_and_gradient(loss), jax.jit(mean_and_gradient(jax.checkpoint(loss)))):
        other_value, other_gradient = other(*arguments)
        close(other_value, value, 1e-6)
        close(other_gradient, gradient, 1e-5)


@every
def test_vmap_is_the_batch(loss, request):
    if "batch_space" in request.node.name:
        pytest.skip("normalizes the images of a batch together")
    arguments = batch()
    batched = jax.jit(loss)(*arguments)
    close(jax.jit(jax.vmap(loss))(*arguments), batched, 1e-6)
    close(jax.jit(loss)(*(x[0] for x in arguments)), batched[0], 1e-6)


@every
@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices (tests/conftest.py)")
def test_eight_devices_agree_with_one(loss):
    arguments = batch(shape=(4, 4, 4, 6))
    value, gradient = compiled(loss)(*arguments)
    mesh = jax.make_mesh((4, 2), ("batch", "space"), axis_types=(AxisType.Auto,) * 2)
    sharding = NamedSharding(mesh, PartitionSpec("batch", "space"))
    spread_value, spread_gradient = compiled(loss)(*jax.device_put(arguments, sharding))
    close(spread_value, value, 1e-6)
    close(spread_gradient, gradient, 1e-5)


@every
def test_duplicating_or_permuting_the_batch_changes_nothing(loss):
    single = batch(shape=(2, 4, 4, 6))
    twice = [np.concatenate([x, x]) for x in single]
    permuted = [np.concatenate([x[::-1], x]) for x in single]
    mean = jax.jit(loss)(*single).mean()
    close(compiled(loss)(*twice)[0], mean, 2e-6)
    close(compiled(loss)(*permuted)[0], mean, 2e-6)


@every
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_reduced_in_float32(loss, dtype):
    student, teacher, truth = batch()
    half = [jnp.asarray(x, dtype) for x in (student, teacher)]
    value, gradient = compiled(loss)(*half, truth)
    exact, exact_gradient = compiled(loss)(*(x.astype(jnp.float32) for x in half), truth)
    assert jax.eval_shape(loss, *half, truth).dtype == jnp.float32
    assert gradient.dtype == dtype
    close(value, exact, 1e-6)
    close(gradient, exact_gradient, 5e-3)


@every
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "extreme", ["huge", "constant", "zero", "single class", "all ignored", "equal"]
)
def test_extremes_are_finite(loss, extreme, dtype):
    student, teacher, truth = batch()
    if extreme == "huge":
        student, teacher = 1e4 * np.sign(student), 1e4 * np.sign(teacher)
    elif extreme == "constant":
        student[..., ::2], teacher[..., ::3] = 1e4 / 3, -7.0
    elif extreme == "zero":
        student[:, ::2], teacher[:, :, ::2] = 0.0, 0.0
    elif extreme == "single class":
        truth = np.zeros_like(truth)
    elif extreme == "all ignored":
        truth = np.full_like(truth, 255)
    elif extreme == "equal":
        teacher = student
    value, gradient = compiled(loss)(
        jnp.asarray(student, dtype), jnp.asarray(teacher, dtype), truth
    )
    assert jnp.isfinite(value)
    assert jnp.all(jnp.isfinite(gradient))


@every
def test_one_pixel_is_finite(loss):
    value, gradient = compiled(loss)(*batch(shape=(2, 1, 1, 6)))
    assert jnp.isfinite(value)
    assert jnp.all(jnp.isfinite(gradient))


@every
def test_the_teacher_receives_no_gradient(loss):
    student, teacher, truth = batch()
    gradient = jax.jit(jax.grad(lambda teacher: jnp.mean(loss(student, teacher, truth))))(teacher)
    np.testing.assert_array_equal(gradient, 0.0)


@imitation
@few
@given(seeds)
def test_imitation_is_positive_and_zero_only_at_the_teacher(loss, seed):
    student, teacher, truth = batch(seed)
    assert compiled(loss)(student, teacher, truth)[0] > 1e-3
    value, gradient = compiled(loss)(teacher, teacher, truth)
    assert abs(value) < 1e-6
    np.testing.assert_allclose(gradient, 0.0, atol=1e-7)


@pytest.mark.parametrize("name", [n for n in EVERY if "gap" in n or "fakd_kl" in n or "cross" in n])
def test_ignored_pixels_change_nothing(name):
    student, teacher, truth = batch()
    if name == "upsampled_cross_entropy":
        pytest.skip("resizing mixes the pixels")
    loss = jax.jit(EVERY[name])
    value = loss(student, teacher, truth)
    ignored = truth == 255
    np.testing.assert_array_equal(value[ignored], 0.0)
    student[ignored] += 3.0
    teacher[ignored] -= 2.0
    np.testing.assert_array_equal(loss(student, teacher, truth), value)
