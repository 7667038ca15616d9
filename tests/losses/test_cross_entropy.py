import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import thorough
from cases import close, labels, normal

from kdjax import losses

# Compiled, as each operation by itself takes longer; test_every_loss.py shows that both agree.
cross_entropy = jax.jit(losses.cross_entropy)


def test_value_and_gradient_are_the_formula():
    logits, truth = normal(0), labels(1)
    close(cross_entropy(logits, truth), reference.cross_entropy(np.float64(logits), truth))
    gradient = jax.jit(jax.grad(lambda x: cross_entropy(x, truth).mean()))(logits)
    expected = reference.gradient(lambda x: reference.cross_entropy(x, truth).mean(), logits)
    close(gradient, expected)


def test_any_label_can_be_the_ignored_one():
    logits, truth = normal(0), labels(1, ignored=0)
    for ignored in (0, 3):
        values = cross_entropy(logits, truth, ignore_label=ignored)
        np.testing.assert_array_equal(values == 0, truth == ignored)
    unsigned = truth.astype(np.uint8)
    close(cross_entropy(logits, unsigned, ignore_label=-1), cross_entropy(logits, truth))


@pytest.mark.parametrize("wrong", [6, 200, -1])
def test_a_label_that_is_no_class_is_not_trained_on_in_silence(wrong):
    truth = labels(1, ignored=0)
    truth[0, 1, 2] = wrong
    values = cross_entropy(normal(0), truth)
    np.testing.assert_array_equal(np.argwhere(np.isnan(values)), [[0, 1, 2]])


@pytest.mark.parametrize("align_corners", thorough.after(1, [False, True]))
@pytest.mark.parametrize("size", [(17, 24), (4, 5), (3, 2), (1, 1)])
def test_upsampled_is_resizing_and_then_cross_entropy(size, align_corners):
    logits, truth = normal(0, (1, 4, 5, 3)), labels(1, (1, *size), classes=3)

    def expected(x):
        resized = reference.resize(x[0], *size, align_corners=align_corners)[None]
        return reference.cross_entropy(resized, truth)

    def loss(x):
        return losses.upsampled_cross_entropy(x, truth, align_corners=align_corners)

    def mean(x):
        values = loss(x)
        return values.mean(), values

    (_, values), gradient = jax.jit(jax.value_and_grad(mean, has_aux=True))(logits)
    close(values, expected(np.float64(logits)))
    close(gradient, reference.gradient(lambda x: expected(x).mean(), logits))


def test_upsampled_takes_no_or_several_batch_dimensions():
    logits, truth = normal(0, (2, 3, 4, 5, 6)), labels(1, (2, 3, 20, 9))
    upsampled = jax.jit(losses.upsampled_cross_entropy)
    values = upsampled(logits, truth)
    assert values.shape == truth.shape
    close(upsampled(logits[1, 2], truth[1, 2]), values[1, 2], 1e-6)


def test_upsampled_scores_that_are_not_finite_reach_those_pixels_that_see_them():
    logits, truth = normal(0), labels(1, (2, 20, 15), classes=5, ignored=0)
    upsampled = jax.jit(losses.upsampled_cross_entropy)
    # A class that is ruled out everywhere: as if there was none.
    wanted = upsampled(logits[..., :5].copy(), truth)
    logits[..., 5] = -np.inf
    close(upsampled(logits, truth), wanted, 1e-6)
    gradient = jax.jit(jax.grad(lambda x: losses.upsampled_cross_entropy(x, truth).mean()))(logits)
    assert np.all(np.isfinite(gradient))
    np.testing.assert_array_equal(gradient[..., 5], 0.0)
    # A cell that is NaN: five rows and three columns a cell, and half a cell around it.
    spoiled = np.zeros(truth.shape, bool)
    spoiled[1, :7, :4] = True
    damaged = logits.copy()  # JAX may still be reading the array that it was given before
    damaged[1, 0, 0] = np.nan
    values = np.asarray(upsampled(damaged, truth))
    np.testing.assert_array_equal(np.isnan(values), spoiled)
    close(values[~spoiled], np.asarray(wanted)[~spoiled], 1e-6)
    damaged = logits.copy()
    damaged[1, 0, 0] = np.inf
    np.testing.assert_array_equal(np.isnan(upsampled(damaged, truth)), spoiled)


def test_valid_mean_is_the_mean_of_what_is_valid():
    values = jnp.array([[1.0, 2.0], [jnp.nan, 6.0]])
    valid = jnp.array([[True, True], [False, True]])
    assert losses.valid_mean(values, valid) == 3.0
    assert losses.valid_mean(values, jnp.zeros_like(valid)) == 0.0
    gradient = jax.grad(losses.valid_mean)(values, valid)
    np.testing.assert_allclose(gradient, [[1 / 3, 1 / 3], [0, 1 / 3]], rtol=1e-6)
    assert losses.valid_mean(jnp.ones(5000, jnp.float16), jnp.ones(5000, bool)) == 1.0
