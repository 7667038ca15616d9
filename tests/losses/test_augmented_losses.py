import functools
import itertools
from typing import Any

import jax
import numpy as np
import pytest
import reference
import thorough
from cases import CLASSES, close, few, head, labels, normal, seeds
from hypothesis import given

from kdjax import losses

BOUNDS = ["soft", "pairwise", "label", "student", "none"]
SHAPE = (2, 2, 3, 4)


def problem(seed, full=False, ignored=0.2):
    """Features, head, teacher, labels and covariance of a small image, 4 channels to 6 classes."""
    kernel, bias, covariance = head(seed, channels=4, full=full)
    truth = labels(seed + 1, SHAPE[:-1], ignored=ignored)
    teacher = 2 * normal(seed + 2, (*SHAPE[:-1], CLASSES))
    return normal(seed + 3, SHAPE), kernel, bias, teacher, truth, covariance


def double(arguments) -> list[Any]:
    return [x if x.dtype == np.int32 else np.float64(x) for x in arguments]


# Compiled, as each operation by itself takes longer; test_every_loss.py shows that both agree.
pixelwise_kl, cwd = jax.jit(losses.pixelwise_kl), jax.jit(losses.cwd)
isda_logits = jax.jit(losses.isda_logits)
isda_cross_entropy = jax.jit(losses.isda_cross_entropy)


@functools.cache
def compiled(function, **options):
    """Every term, and the gradient of their mean by features and kernel; one compilation."""

    def mean(features, kernel, rest, settings):
        values = function(features, kernel, *rest, **settings, **options)
        return values.mean(), values

    return jax.jit(jax.value_and_grad(mean, argnums=(0, 1), has_aux=True))


def evaluate(function, arguments, bound=None, **settings):
    options = {} if bound is None else {"bound": bound}
    features, kernel, *rest = arguments
    settings = {name: np.float32(value) for name, value in settings.items()}
    found = compiled(function, **options)(features, kernel, rest, settings)
    (_, values), gradients = jax.device_get(found)
    return values, gradients


def fakd_kl(arguments, bound, strength, temperature=1.0):
    options = {"strength": strength, "temperature": temperature}
    return evaluate(losses.fakd_kl, arguments, bound, **options)[0]


def fakd_cwd(arguments, strength, temperature=4.0):
    return evaluate(losses.fakd_cwd, arguments, strength=strength, temperature=temperature)[0]


def expected_gradients(function, arguments):
    for position in (0, 1):

        def mean(x, position=position):
            changed = [*arguments]
            changed[position] = x
            return function(*changed).mean()

        yield reference.gradient(mean, arguments[position])


@pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])
@pytest.mark.parametrize("bound", thorough.after(2, BOUNDS))
def test_fakd_kl_value_and_gradients_are_the_formula(bound, full):
    arguments = problem(0, full)
    options = {"strength": 1.5, "temperature": 2.0, "bound": bound}
    values, gradients = evaluate(losses.fakd_kl, arguments, **options)
    exact = double(arguments)
    own = reference.softmax((exact[0] @ exact[1] + exact[2]) / 2.0)
    expected = functools.partial(reference.fakd_kl, **options, own=own)
    close(values, expected(*exact))
    for gradient, wanted in zip(gradients, expected_gradients(expected, exact), strict=True):
        close(gradient, wanted)


@pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])
def test_fakd_cwd_value_and_gradients_are_the_formula(full):
    arguments = problem(0, full)
    options = {"strength": 1.5, "temperature": 2.0}
    values, gradients = evaluate(losses.fakd_cwd, arguments, **options)
    expected = functools.partial(reference.fakd_cwd, **options)
    close(values, expected(*double(arguments)))
    for gradient, wanted in zip(
        gradients, expected_gradients(expected, double(arguments)), strict=True
    ):
        close(gradient, wanted)


@pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])
def test_isda_value_and_gradients_are_the_formula(full):
    features, kernel, bias, _, truth, covariance = problem(0, full)
    arguments = (features, kernel, bias, truth, covariance)
    logits = isda_logits(*arguments, strength=3.0)
    close(logits, reference.isda_logits(*double(arguments), strength=3.0))
    values, gradients = evaluate(losses.isda_cross_entropy, arguments, strength=3.0)

    def expected(*arguments):
        return reference.cross_entropy(reference.isda_logits(*arguments, strength=3.0), truth)

    close(values, expected(*double(arguments)))
    for gradient, wanted in zip(
        gradients, expected_gradients(expected, double(arguments)), strict=True
    ):
        close(gradient, wanted)


@few
@given(seeds)
@pytest.mark.parametrize("bound", BOUNDS)
def test_without_strength_or_covariance_it_is_the_plain_loss(bound, seed):
    features, kernel, bias, teacher, truth, covariance = arguments = problem(seed)
    plain = pixelwise_kl(features @ kernel + bias, teacher)
    plain = np.where(truth == 255, 0, plain)
    close(fakd_kl(arguments, bound, 0.0), plain, 2e-6)
    none = (*arguments[:-1], 0 * covariance)
    close(fakd_kl(none, bound, 2.0), plain, 2e-6)
    channelwise = cwd(features @ kernel + bias, teacher)
    close(fakd_cwd(arguments, 0.0), channelwise, 5e-6)


@few
@given(seeds)
@pytest.mark.parametrize("bound", BOUNDS)
def test_bounds_grow_with_the_strength(bound, seed):
    arguments = problem(seed, full=True)
    values = [fakd_kl(arguments, bound, s) for s in (0.0, 0.5, 2.0, 8.0)]
    assert all(np.all(high >= low - 1e-5) for low, high in itertools.pairwise(values))


@few
@given(seeds)
def test_soft_is_never_above_pairwise(seed):
    arguments = problem(seed)
    soft, pairwise = (fakd_kl(arguments, b, 2.0) for b in ("soft", "pairwise"))
    assert np.all(soft <= pairwise + 1e-4)


def expectations(arguments, strength, temperature, samples=2000, seed=0):
    """The augmented divergence of each pixel and channel: its mean and three standard errors."""
    features, kernel, bias, teacher, truth, covariance = double(arguments)
    covariance = reference.full(covariance)
    rng = np.random.default_rng(seed)
    noise = np.zeros((samples, *features.shape))
    for i in np.ndindex(*truth.shape):
        if truth[i] != 255:
            sigma = strength * covariance[truth[i]]
            noise[(slice(None), *i)] = rng.multivariate_normal(
                np.zeros(len(sigma)), sigma, samples, method="eigh"
            )
    scores = (features + noise) @ kernel + bias

    def divergence(axis):
        p = reference.softmax(teacher / temperature, axis)
        q = reference.softmax(scores / temperature, tuple(a + 1 for a in axis))
        values = temperature**2 * np.sum(p * (np.log(p) - np.log(q)), tuple(a + 1 for a in axis))
        return values.mean(0), 3 * values.std(0) / np.sqrt(samples)

    return divergence((3,)), divergence((1, 2))


@few
@given(seeds)
def test_bounds_lie_above_the_expected_loss(seed):
    arguments = problem(seed, ignored=0, full=seed % 2 == 0)
    strength, temperature = 1.0 + seed % 3, 1.0 + seed % 2
    (pixels, error), (channels, channel_error) = expectations(arguments, strength, temperature)
    options = {"strength": strength, "temperature": temperature}
    for bound in BOUNDS:
        assert np.all(fakd_kl(arguments, bound, **options) >= pixels - error - 1e-4), bound
    channelwise = fakd_cwd(arguments, **options)
    assert np.all(channelwise >= channels - channel_error - 1e-4)


def test_augmented_scores_straight_in_the_divergence_are_no_bound():
    """Why there is no option `plugin`: it falls below the expected and the plain loss."""
    below_expected = below_plain = 0
    for seed in range(20):
        arguments = problem(seed, ignored=0)
        features, kernel, bias, teacher, truth, covariance = arguments
        added = isda_logits(features, kernel, bias, truth, covariance, strength=2.0)
        plugin = pixelwise_kl(added, teacher)
        (expected, error), _ = expectations(arguments, 2.0, 1.0, samples=500)
        below_expected += np.sum(plugin < expected - error)
        below_plain += np.sum(plugin < pixelwise_kl(features @ kernel + bias, teacher) - 1e-3)
    assert below_expected > 5
    assert below_plain > 5


@few
@given(seeds)
def test_a_certain_teacher_makes_soft_pairwise_label_and_isda_one(seed):
    features, kernel, bias, _, truth, covariance = problem(seed)
    classes = np.where(truth == 255, 0, truth)
    certain = 200 * np.eye(CLASSES, dtype=np.float32)[classes]
    isda = isda_cross_entropy(features, kernel, bias, truth, covariance, strength=2.0)
    for bound in ("soft", "pairwise", "label"):
        value = fakd_kl((features, kernel, bias, certain, truth, covariance), bound, 2.0)
        close(value, isda, 1e-5)


@few
@given(seeds)
def test_a_common_shift_of_all_columns_only_matters_to_none(seed):
    features, kernel, bias, teacher, truth, covariance = problem(seed)
    shifted = kernel + normal(seed, (4, 1))
    for bound in BOUNDS:
        before, after = (
            fakd_kl((features, k, bias, teacher, truth, covariance), bound, 2.0)
            for k in (kernel, shifted)
        )
        if bound == "none":
            assert np.max(np.abs(after - before)) > 1e-2
        else:
            close(after, before, 3e-5)


@pytest.mark.parametrize("ignored", [2, 255])
def test_ignored_pixels_are_not_augmented(ignored):
    features, kernel, bias, teacher, truth, covariance = problem(0)
    truth = np.full_like(truth, ignored)
    scores = features @ kernel + bias
    options = {"strength": 2.0, "ignore_label": ignored}
    fakd_cwd = jax.jit(losses.fakd_cwd)
    value = fakd_cwd(features, kernel, bias, teacher, truth, covariance, **options)
    close(value, cwd(scores, teacher), 1e-6)
    close(isda_logits(features, kernel, bias, truth, covariance, **options), scores, 1e-6)


def test_fakd_cwd_of_a_single_class_only_adds_a_constant():
    features, kernel, bias, teacher, truth, covariance = problem(0)
    truth = np.full_like(truth, 2)
    arguments = (features, kernel, bias, teacher, truth, covariance)
    added = 2.0 / 2 * np.square(kernel).T @ covariance[2]
    plain = cwd(features @ kernel + bias, teacher)
    close(fakd_cwd(arguments, 2.0), plain + added)
    gradients = [
        evaluate(losses.fakd_cwd, arguments, strength=strength, temperature=4.0)[1][0]
        for strength in (0.0, 2.0)
    ]
    close(*gradients)


def test_the_covariance_receives_no_gradient_and_the_strength_may_be_a_schedule():
    features, kernel, bias, teacher, truth, covariance = problem(0)
    for function in (losses.fakd_kl, losses.fakd_cwd):

        def mean(covariance, strength, function=function):
            arguments = (features, kernel, bias, teacher, truth, covariance)
            return function(*arguments, strength=strength).mean()

        value, gradient = jax.jit(jax.value_and_grad(mean))(covariance, 0.5)
        np.testing.assert_array_equal(gradient, 0.0)
        # A number as much as one that is traced.
        close(value, jax.jit(functools.partial(mean, strength=0.5))(covariance), 1e-6)


def test_no_bias_is_a_bias_of_zero():
    features, kernel, bias, teacher, truth, covariance = problem(0)
    rest = (teacher, truth, covariance)
    compiled = jax.jit(losses.fakd_kl)
    with_zero = compiled(features, kernel, 0 * bias, *rest, strength=1.0)
    close(compiled(features, kernel, None, *rest, strength=1.0), with_zero, 1e-6)


@pytest.mark.parametrize("bound", BOUNDS)
def test_a_label_that_is_no_class_is_not_augmented(bound):
    features, kernel, bias, teacher, truth, covariance = problem(0)
    truth = np.full_like(truth, CLASSES + 3)
    values = fakd_kl((features, kernel, bias, teacher, truth, covariance), bound, 2.0)
    close(values, pixelwise_kl(features @ kernel + bias, teacher))


def test_a_large_level_of_the_scores_costs_no_digits():
    features, kernel, bias, *rest = problem(0)
    # Multiples of 1/16, to which 2^12 can be added without rounding.
    features, kernel = np.round(4 * features) / 4, np.round(4 * kernel) / 4
    for function in (losses.fakd_kl, losses.fakd_cwd):
        zero, level = (
            evaluate(function, (features, kernel, np.full_like(bias, shift), *rest), strength=1.0)
            for shift in (0.0, 4096.0)
        )
        close(level[0], zero[0], 1e-6)


@pytest.mark.parametrize("function", [losses.fakd_kl, losses.fakd_cwd])
def test_a_class_that_both_rule_out_counts_for_nothing(function):
    features, kernel, bias, teacher, truth, covariance = problem(0)
    truth = np.where(truth == 5, 0, truth)
    masked = [np.where(np.arange(CLASSES) == 5, -np.inf, x) for x in (bias, teacher)]
    masked = (features, kernel, masked[0], masked[1], truth, covariance)
    left = (features, kernel[:, :5], bias[:5], teacher[..., :5], truth, covariance[:5])
    values, gradients = evaluate(function, masked, strength=2.0)
    wanted, wanted_gradients = evaluate(function, left, strength=2.0)
    if function is losses.fakd_cwd:  # one value a class
        np.testing.assert_array_equal(values[..., 5], 0.0)
        values, gradients = values[..., :5], [x * 6 / 5 for x in gradients]
    close(values, wanted)
    close(gradients[0], wanted_gradients[0])
    close(gradients[1][:, :5], wanted_gradients[1])


@pytest.mark.parametrize("bound", BOUNDS)
def test_ignored_pixels_that_are_not_finite_do_not_reach_the_kernel(bound):
    arguments = problem(0)
    features, truth = arguments[0], arguments[4]
    before = evaluate(losses.fakd_kl, arguments, bound, strength=2.0)
    features = np.where(truth[..., None] == 255, np.nan, features).astype(np.float32)
    after = evaluate(losses.fakd_kl, (features, *arguments[1:]), bound, strength=2.0)
    jax.tree.map(lambda x, y: close(x, y, 1e-6), after, before)
    kernel, bias, covariance = arguments[1], arguments[2], arguments[5]
    isda = functools.partial(losses.isda_cross_entropy, strength=2.0)
    by_kernel = jax.jit(jax.grad(lambda k: isda(features, k, bias, truth, covariance).sum()))
    assert np.all(np.isfinite(by_kernel(kernel)))
