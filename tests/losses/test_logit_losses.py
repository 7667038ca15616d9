import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import EVERY, close, compiled, few, follows, labels, normal, seeds
from hypothesis import given, strategies

from kdjax import losses

temperatures = strategies.sampled_from([0.5, 1.0, 4.0])
TRUTH = labels(9, ignored=0)


# Compiled, as each operation by itself takes longer; test_every_loss.py shows that both agree.
pixelwise_kl, cwd = jax.jit(losses.pixelwise_kl), jax.jit(losses.cwd)
gap_weighted_kl = jax.jit(losses.gap_weighted_kl, static_argnames="gap")
COMPILED = {"pixelwise_kl": pixelwise_kl, "cwd": cwd}


@functools.cache
def gradient_of(loss):
    """Returns the gradient of the mean with respect to the student."""

    def mean(student, teacher, *labels, **options):
        return loss(student, teacher, *labels, **options).mean()

    return jax.jit(jax.grad(mean), static_argnames="gap")


@few
@given(seeds, temperatures)
@pytest.mark.parametrize("name", ["pixelwise_kl", "cwd"])
def test_value_and_gradient_are_the_formula(name, seed, temperature):
    student, teacher = normal(seed), normal(seed + 1)
    loss, expected = COMPILED[name], getattr(reference, name)
    close(
        loss(student, teacher, temperature=temperature),
        expected(np.float64(student), np.float64(teacher), temperature),
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("name", ["pixelwise_kl", "cwd"])
def test_gradient_is_the_formula(name, temperature):
    student, teacher = normal(0), normal(1)
    expected = getattr(reference, name)
    gradient = gradient_of(COMPILED[name])(student, teacher, temperature=temperature)
    exact = np.float64(teacher)
    close(gradient, reference.gradient(lambda s: expected(s, exact, temperature).mean(), student))


@pytest.mark.parametrize("gap", ["probability", "cross_entropy", "total_variation"])
def test_gap_weighted_value_and_gradient_are_the_formula(gap):
    student, teacher, truth = normal(0), normal(1), labels(2)
    options = {"temperature": 2.0, "gap": gap}
    # The weight is a constant to the gradient.
    weight = reference.gap_weight(np.float64(student), np.float64(teacher), truth, gap)

    def expected(s):
        return weight * reference.pixelwise_kl(s, np.float64(teacher), 2.0)

    close(gap_weighted_kl(student, teacher, truth, **options), expected(np.float64(student)))
    gradient = gradient_of(gap_weighted_kl)(student, teacher, truth, **options)
    close(gradient, reference.gradient(lambda s: expected(s).mean(), student))


@few
@given(seeds)
def test_the_probability_gap_only_opens_where_the_teacher_is_ahead(seed):
    student, teacher = normal(seed), normal(seed + 1)
    values = gap_weighted_kl(student, teacher, TRUTH)
    ahead = [
        np.take_along_axis(reference.softmax(np.float64(x)), TRUTH[..., None], -1)[..., 0]
        for x in (student, teacher)
    ]
    np.testing.assert_array_equal(values > 0, ahead[1] > ahead[0])


@pytest.mark.parametrize("gap", ["probability", "cross_entropy"])
@pytest.mark.parametrize("wrong", [6, 200, -1, -6])
def test_a_label_that_is_no_class_has_no_gap(gap, wrong):
    truth = TRUTH.copy()
    truth[0, 1, 2] = wrong
    values = gap_weighted_kl(normal(0), normal(1), truth, gap=gap)
    np.testing.assert_array_equal(np.argwhere(np.isnan(values)), [[0, 1, 2]])


@few
@given(seeds, temperatures)
def test_pixelwise_kl_ignores_a_shift_of_all_classes(seed, temperature):
    student, teacher = normal(seed), normal(seed + 1)
    loss = functools.partial(pixelwise_kl, temperature=temperature)
    shifted = loss(student + normal(seed + 2, (2, 4, 5, 1)), teacher - 3.0)
    close(shifted, loss(student, teacher), 1e-5)


def test_pixelwise_kl_at_high_temperature_is_a_centered_distance():
    student, teacher = normal(0), normal(1)
    difference = teacher - student
    centered = difference - difference.mean(-1, keepdims=True)
    close(
        pixelwise_kl(student, teacher, temperature=30.0).mean(),
        0.5 * (centered**2).mean(),
        3e-2,
    )


@few
@given(seeds, temperatures)
def test_cwd_sees_neither_levels_nor_the_order_of_pixels(seed, temperature):
    student, teacher = normal(seed), normal(seed + 1)
    loss = functools.partial(cwd, temperature=temperature)
    value = loss(student, teacher)
    levels = normal(seed + 2, (2, 1, 1, 6))
    close(loss(student + levels, teacher - 2 * levels), value, 2e-5)
    assert jnp.max(jnp.abs(loss(teacher + levels, teacher))) < 1e-5
    order = np.random.default_rng(seed).permutation(20)
    moved = (x.reshape(2, 20, 6)[:, order].reshape(x.shape) for x in (student, teacher))
    close(loss(*moved), value)


def test_standardized_kl_ignores_the_scale_and_the_level_of_the_scores():
    student, teacher = normal(0), normal(1)
    scale, level = np.exp(normal(2, (2, 4, 5, 1))), normal(3, (2, 4, 5, 1))
    loss = jax.jit(losses.standardized_kl)
    close(loss(scale * student + level, teacher), loss(student, teacher))
    assert jnp.max(loss(scale * teacher + level, teacher)) < 1e-6


@few
@given(seeds)
def test_cwd_scales_with_the_square_of_a_common_factor(seed):
    student, teacher = normal(seed), normal(seed + 1)
    scaled = cwd(3 * student, 3 * teacher, temperature=6.0)
    close(scaled, 9 * cwd(student, teacher, temperature=2.0), 2e-5)
    assert abs(cwd(3 * student, teacher).mean() / cwd(student, teacher).mean() - 1) > 0.1


def test_cwd_at_high_temperature_is_half_the_variance_of_the_difference():
    student, teacher = normal(0), normal(1)
    variance = np.var(teacher - student, axis=(1, 2)).mean()
    close(cwd(student, teacher, temperature=50.0).mean(), variance / 2, 2e-2)


def test_cwd_is_additive_over_channels_and_its_gradient_sums_to_zero():
    student, teacher = normal(0), normal(1)
    gradient = np.asarray(gradient_of(cwd)(student, teacher))
    twice = [np.concatenate([x, x], axis=-1) for x in (student, teacher)]
    close(cwd(*twice), np.tile(cwd(student, teacher), 2), 1e-6)
    np.testing.assert_allclose(gradient.sum((1, 2)), 0, atol=1e-6)
    shares = [reference.softmax(x / 4.0, axis=(1, 2)) for x in (student, teacher)]
    close(gradient, 4.0 * (shares[0] - shares[1]) / 12)


def test_cwd_survives_maps_whose_shares_underflow():
    # softmax(...).log() is -inf here, as in the authors' code.
    student, teacher = normal(0, scale=300.0), normal(1, scale=300.0)
    expected = reference.cwd(np.float64(student) * 1e-2, np.float64(teacher) * 1e-2, 1.0)
    close(cwd(student * 1e-2, teacher * 1e-2, temperature=1.0), expected)
    assert jnp.all(jnp.isfinite(cwd(student, teacher, temperature=1.0)))


def test_cwd_keeps_its_digits_when_one_map_is_peaked_and_the_other_flat():
    flat, peaked = normal(0, (1, 64, 64, 2), scale=0.1), normal(1, (1, 64, 64, 2), scale=0.1)
    peaked[:, 3, 5] = 20.0
    for student, teacher in ((flat, peaked), (peaked, flat)):
        expected = reference.cwd(np.float64(student), np.float64(teacher), 1.0)
        close(cwd(student, teacher, temperature=1.0), expected, 1e-6)


def test_long_rows_are_summed_without_losing_digits():
    student, teacher = normal(0, (1, 2, 8192, 1)), normal(1, (1, 2, 8192, 1))
    close(
        cwd(student, teacher, temperature=1.0),
        reference.cwd(np.float64(student), np.float64(teacher), 1.0),
        3e-7,
    )


def test_a_small_divergence_keeps_its_digits():
    teacher = normal(0, (1, 64, 64, 2))
    student = teacher + normal(1, (1, 64, 64, 2), scale=0.1)
    for name in ("cwd", "pixelwise_kl"):
        loss, expected = COMPILED[name], getattr(reference, name)
        wanted = expected(np.float64(student), np.float64(teacher), 4.0)
        close(loss(student, teacher, temperature=4.0), wanted, 1e-4)


@pytest.mark.parametrize("gap", ["probability", "cross_entropy", "total_variation"])
def test_the_gap_is_a_constant_to_the_second_derivative_too(gap):
    student, teacher = normal(0)[0, 0, 0], normal(1)[0, 0, 0]
    truth = np.argmax(reference.softmax(teacher) - reference.softmax(student))
    weight = reference.gap_weight(
        *(np.float64(x)[None] for x in (student, teacher)), truth[None], gap
    )
    assert weight[0] > 0

    def loss(scores):
        scores, target = (x[None, None] for x in (scores, teacher))
        return losses.gap_weighted_kl(scores, target, truth[None, None], gap=gap).sum()

    # The divergence's own: diag(q) - q q'.
    share = reference.softmax(np.float64(student))
    close(jax.jit(jax.hessian(loss))(student), weight * (np.diag(share) - np.outer(share, share)))


IMPOSSIBLE = {
    "pixelwise_kl": lambda s, t: losses.pixelwise_kl(s, t, temperature=2.0),
    "cwd": losses.cwd,
    "standardized_kl": losses.standardized_kl,
    **{
        gap: functools.partial(losses.gap_weighted_kl, labels=TRUTH % 5, gap=gap)
        for gap in ("probability", "cross_entropy", "total_variation")
    },
}


@pytest.mark.parametrize("loss", IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_class_that_both_rule_out_counts_for_nothing(loss, dtype):
    """0 (-inf - (-inf)) is 0: what is left is the loss of the other classes."""
    student, teacher = (normal(seed).astype(jnp.dtype(dtype)) for seed in (0, 1))
    masked = [np.where(np.arange(6) == 5, -np.inf, x).astype(dtype) for x in (student, teacher)]

    @jax.jit
    def evaluate(student, teacher):
        values, pull = jax.vjp(lambda s: loss(s, teacher), student)
        return values, pull(jnp.ones_like(values))[0]

    @jax.jit
    def differentiate(student, teacher, along):
        """Gradient and value, and how fast the gradient changes along another map."""
        found, change = jax.jvp(lambda s: evaluate(s, teacher), [student], [along])
        return found, change[1]

    (values, gradient), second = differentiate(*masked, student)
    wanted, wanted_gradient = evaluate(student[..., :5], teacher[..., :5])
    if loss is losses.cwd:  # one value a channel
        np.testing.assert_array_equal(values[..., 5], 0.0)
        values = values[..., :5]
    close(values, wanted, 1e-6)
    np.testing.assert_array_equal(gradient[..., 5], 0.0)
    close(gradient[..., :5], wanted_gradient, 1e-6)
    assert jnp.all(jnp.isfinite(second))


def test_what_only_one_of_the_two_rules_out():
    student, teacher = normal(0), normal(1)
    masked = np.array(student)
    masked[..., 5] = -np.inf
    # The teacher's leaves the sum; the student's makes it infinite, with a finite gradient.
    assert jnp.all(jnp.isfinite(pixelwise_kl(student, masked)))
    assert jnp.all(jnp.isposinf(pixelwise_kl(masked, teacher)))
    gradient = gradient_of(pixelwise_kl)(masked, teacher)
    assert jnp.all(jnp.isfinite(gradient))
    nothing = np.full_like(student, -np.inf)
    np.testing.assert_array_equal(pixelwise_kl(nothing, nothing), 0.0)
    assert jnp.all(jnp.isposinf(pixelwise_kl(nothing, teacher)))
    assert jnp.all(jnp.isposinf(pixelwise_kl(student, nothing)))
    # No score is a NaN that goes unseen.
    masked[0, 0, 0, 0] = np.nan
    assert jnp.isnan(pixelwise_kl(masked, nothing)[0, 0, 0])
    assert jnp.isnan(pixelwise_kl(student, masked)[0, 0, 0])


def correlations(rows, others):
    """Returns 1 minus the correlation of each row, as DIST's code does."""
    rows, others = (np.float64(x) - np.float64(x).mean(-1, keepdims=True) for x in (rows, others))
    lengths = np.linalg.norm(rows, axis=-1) * np.linalg.norm(others, axis=-1)
    return 1 - (rows * others).sum(-1) / (lengths + 1e-8)


@pytest.mark.parametrize("name", ["dist_inter", "dist_intra"])
def test_dist_value_and_gradient_are_the_formula(name):
    student, teacher = normal(0), normal(1)

    def expected(student):
        tables = [reference.softmax(np.float64(x)).reshape(-1, 6) for x in (student, teacher)]
        if name == "dist_intra":
            return correlations(*(table.T for table in tables))
        return correlations(*tables).reshape(2, 4, 5)

    found = compiled(EVERY[name])(student, teacher, None)
    close(found.values, expected(student))
    follows(found.by_student, lambda s: expected(s).mean(), student)
    assert np.all((found.values >= 0) & (found.values <= 2))


def test_dist_within_classes_is_half_of_nfd_of_the_distributions():
    student, teacher = normal(0), normal(1)
    shares = [np.float32(reference.softmax(x)) for x in (student, teacher)]
    half = compiled(lambda s, t, _: 0.5 * losses.nfd(s, t, axes="batch_space", eps=1e-12))
    close(compiled(EVERY["dist_intra"])(student, teacher, None).mean, half(*shares, None).mean)


def test_dist_of_two_classes_is_whether_they_agree():
    student, teacher = normal(0, (2, 4, 5, 2)), normal(1, (2, 4, 5, 2))
    agree = (student[..., 0] > student[..., 1]) == (teacher[..., 0] > teacher[..., 1])
    close(jax.jit(losses.dist_inter)(student, teacher), np.where(agree, 0.0, 2.0))


def test_a_class_that_is_nowhere_has_no_correlation_and_may_be_left_out():
    student = normal(0)
    student[..., :2] -= 40
    values = jax.jit(losses.dist_intra)(student, student)
    np.testing.assert_allclose(values, [1, 1, 0, 0, 0, 0], atol=1e-6)
    present = jax.jit(lambda s, t: losses.dist_intra(s, t, classes="present"))
    np.testing.assert_allclose(present(student, student), 0, atol=1e-6)
    other = normal(1)
    close(present(other, student).mean(), jax.jit(losses.dist_intra)(other, student)[2:].mean())


def test_a_uniform_pixel_is_correlated_with_nothing_and_finite():
    flat = np.zeros((1, 2, 2, 6), np.float32)
    for loss in (losses.dist_inter, losses.dist_intra):
        value_and_gradient = jax.jit(jax.value_and_grad(lambda s, loss=loss: loss(s, s + 3).mean()))
        value, gradient = value_and_gradient(flat)
        assert value == 1.0
        assert np.all(np.isfinite(gradient))
