import jax
import numpy as np
import pytest
import reference
from cases import EVERY, close, compiled, few, follows, normal, seeds
from hypothesis import given

from kdjax import losses


def test_l2_is_the_formula_and_nfd_of_what_is_normalized_already():
    student, teacher = normal(0), 3 * normal(1) + 2
    apart = np.float64(student) - teacher
    close(losses.l2(student, teacher), (apart**2).mean(-1))
    gradient = jax.grad(lambda s: losses.l2(s, teacher).mean())(student)
    close(gradient, 2 * apart / apart.size)
    unit = [
        (x - x.mean((1, 2), keepdims=True)) / x.std((1, 2), keepdims=True)
        for x in (student, teacher)
    ]
    close(losses.l2(*unit).mean(), losses.nfd(student, teacher, eps=1e-12).mean())


def test_the_best_adapter_of_l2_is_that_of_least_squares():
    """And the student's basis does not matter, which the adapter takes in."""
    student, teacher = normal(0, (2, 4, 5, 3)), normal(1)
    rows, targets = np.float64(student).reshape(-1, 3), np.float64(teacher).reshape(-1, 6)
    kernel, residual, *_ = np.linalg.lstsq(rows, targets, rcond=None)
    kernel = kernel.astype(np.float32)
    best = losses.l2(student @ kernel, teacher).mean()
    close(best, residual.sum() / targets.size)
    value, gradient = jax.value_and_grad(lambda k: losses.l2(student @ k, teacher).mean())(kernel)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    moved = kernel + normal(2, kernel.shape)
    gradient = jax.grad(lambda k: losses.l2(student @ k, teacher).mean())(moved)
    close(gradient, 2 / targets.size * rows.T @ (rows @ moved - targets))
    turn = np.linalg.qr(normal(3, (3, 3)))[0]
    close(losses.l2(student @ turn @ (turn.T @ kernel), teacher).mean(), value)


AXES = ["space", "batch_space", "channel", "all"]


@pytest.mark.parametrize("axes", AXES)
def test_value_and_gradient_are_the_formula(axes):
    student, teacher = normal(0) + 5, 3 * normal(1)
    close(
        losses.nfd(student, teacher, axes=axes),
        reference.nfd(np.float64(student), np.float64(teacher), axes),
    )
    gradient = jax.grad(lambda s: losses.nfd(s, teacher, axes=axes).mean())(student)
    exact = np.float64(teacher)
    close(gradient, reference.gradient(lambda s: reference.nfd(s, exact, axes).mean(), student))


@few
@given(seeds)
def test_space_is_one_minus_the_correlation(seed):
    student, teacher = normal(seed), normal(seed + 1)
    value = losses.nfd(student, teacher, eps=1e-12)
    for b, c in np.ndindex(*value.shape):
        rho = np.corrcoef(student[b, ..., c].ravel(), teacher[b, ..., c].ravel())[0, 1]
        np.testing.assert_allclose(value[b, c], 2 * (1 - rho), rtol=1e-5, atol=1e-6)


@few
@given(seeds)
def test_space_sees_neither_scale_nor_level_and_a_sign_flips_it(seed):
    student, teacher = normal(seed), normal(seed + 1)
    value = losses.nfd(student, teacher, eps=1e-12)
    scale, level = np.exp(normal(seed + 2, (2, 1, 1, 6))), normal(seed + 3, (2, 1, 1, 6))
    close(losses.nfd(scale * student + level, teacher, eps=1e-12), value)
    close(losses.nfd(student, scale * teacher - level, eps=1e-12), value)
    close(losses.nfd(-student, teacher, eps=1e-12), 4 - value)
    close(losses.nfd(teacher, student, eps=1e-12), value)


def test_space_pushes_neither_on_scale_nor_on_level():
    student, teacher = normal(0), normal(1)
    gradient = jax.grad(lambda s: losses.nfd(s, teacher).mean())(student)
    centered = student - student.mean((1, 2), keepdims=True)
    np.testing.assert_allclose(gradient.sum((1, 2)), 0, atol=1e-7)
    np.testing.assert_allclose((gradient * centered).sum((1, 2)), 0, atol=1e-5)


def test_an_adapter_bias_receives_no_gradient():
    features, kernel, teacher = normal(0, (2, 4, 5, 3)), normal(1, (3, 6)), normal(2)
    gradient = jax.grad(lambda b: losses.nfd(features @ kernel + b, teacher).mean())(
        normal(3, (6,))
    )
    np.testing.assert_allclose(gradient, 0, atol=1e-7)


@few
@given(seeds)
def test_space_does_not_depend_on_the_order_of_pixels_or_channels(seed):
    student, teacher = normal(seed), normal(seed + 1)
    value = losses.nfd(student, teacher)
    rng = np.random.default_rng(seed)
    pixels, channels = rng.permutation(20), rng.permutation(6)
    moved = [x.reshape(2, 20, 6)[:, pixels].reshape(x.shape) for x in (student, teacher)]
    close(losses.nfd(*moved), value)
    close(losses.nfd(student[..., channels], teacher[..., channels]), value[:, channels])


def test_a_constant_channel_is_zero_at_any_level():
    teacher = normal(0)
    for level in (0.0, 1e4 / 3, 6e4):
        student = np.full_like(teacher, level)
        np.testing.assert_allclose(losses.nfd(student, teacher).mean(), 1.0, rtol=1e-4)


def test_a_small_variation_around_a_large_level_keeps_its_digits():
    student, teacher = normal(0), normal(1)
    # Multiples of 2^-8 can be added to 2^12 without rounding.
    student = np.round(student * 256) / 256
    close(losses.nfd(student + 4096, teacher), losses.nfd(student, teacher), 1e-6)


@pytest.mark.parametrize(
    ("axes", "shape"),
    [("space", (2, 6)), ("batch_space", (6,)), ("channel", (2, 4, 5)), ("all", (2,))],
)
def test_dead_is_what_varies_less_than_eps(axes, shape):
    alive = normal(0)
    assert losses.dead_channels(alive, axes=axes).shape == shape
    assert not losses.dead_channels(alive, axes=axes).any()
    # Standard deviations of 0.9 and 1.1 times the root of eps, around any level.
    for scale, dead in ((0.9e-2, True), (1.1e-2, False)):
        over = {"space": (1, 2), "batch_space": (0, 1, 2), "channel": 3, "all": (1, 2, 3)}[axes]
        small = 7 + scale * alive / alive.std(over, keepdims=True)
        assert np.all(losses.dead_channels(small, axes=axes, eps=1e-4) == dead)


def test_dead_channels_are_marked_one_by_one():
    features = normal(0)
    features[0, ..., 2], features[1, ..., 5] = 0.0, 1e4 / 3
    expected = np.zeros((2, 6), bool)
    expected[0, 2] = expected[1, 5] = True
    np.testing.assert_array_equal(losses.dead_channels(features), expected)


def test_dead_channels_beside_nfd_read_its_variances():
    def flops(function):
        maps = [jax.ShapeDtypeStruct((2, 16, 16, 32), np.float32)] * 2
        compiled = jax.jit(jax.value_and_grad(function, has_aux=True)).lower(*maps).compile()
        costs = compiled.cost_analysis()
        assert costs is not None
        return costs["flops"]

    def alone(student, teacher):
        return losses.nfd(student, teacher).mean(), ()

    def watched(student, teacher):
        dead = [losses.dead_channels(x).mean() for x in (student, teacher)]
        return losses.nfd(student, teacher).mean(), dead

    plain, both = map(flops, (alone, watched))
    assert both < 1.02 * plain


def attention(features):
    image = np.float64(features)
    image = (image**2).mean(-1)
    return image / np.linalg.norm(image, axis=(-2, -1), keepdims=True)


def test_pkd_is_one_minus_the_correlation_and_mmrazors_up_to_the_unbiased_deviation():
    student, teacher = normal(0), 3 * normal(1) + 2
    value = compiled(EVERY["pkd"])(student, teacher, None).mean

    def standardized(x):
        x = np.float64(x)
        return (x - x.mean((0, 1, 2))) / (x.std((0, 1, 2), ddof=1) + 1e-6)

    samples = student[..., 0].size
    theirs = ((standardized(student) - standardized(teacher)) ** 2).mean() / 2
    close(value * (samples - 1) / samples, theirs)
    rho = [np.corrcoef(student[..., c].ravel(), teacher[..., c].ravel())[0, 1] for c in range(6)]
    close(value, 1 - np.mean(rho))


def test_groups_are_batches_of_their_own():
    student, teacher = normal(0, (4, 3, 3, 6)), normal(1, (4, 3, 3, 6))

    @jax.jit
    def together(student, teacher):
        halves, found = [(student[i : i + 2], teacher[i : i + 2]) for i in (0, 2)], []
        for loss in (losses.pkd, losses.dist_intra):
            apart = [loss(*half).mean() for half in halves]
            found.append((loss(student, teacher, group=2).mean(), sum(apart) / 2))
            found.append((loss(student, teacher, group=4).mean(), loss(student, teacher).mean()))
        return found

    found = together(student, teacher)
    for value, expected in found:
        close(value, expected, 1e-6)
    assert abs(found[0][0] - found[1][0]) > 1e-3


def test_attention_transfer_is_cirkds_times_the_pixels():
    student, teacher = normal(0), normal(1, (2, 4, 5, 6))
    found = compiled(EVERY["attention_transfer"])(student, teacher, None)
    mine, other = attention(student), attention(teacher)
    cirkd = ((mine - other) ** 2).mean()
    close(found.mean, 4 * 5 * cirkd)
    close(found.values, 2 * (1 - (mine * other).sum((-2, -1))))
    follows(found.by_student, lambda s: ((attention(s) - other) ** 2).sum((-2, -1)).mean(), student)
    assert np.all((found.values >= 0) & (found.values <= 2))


def test_attention_sees_neither_scale_nor_basis_and_sees_a_level():
    student, teacher = normal(0), normal(1)
    loss = compiled(EVERY["attention_transfer"])
    values = loss(student, teacher, None).values
    turn = np.linalg.qr(normal(3, (6, 6)))[0]
    scale = np.float32([3.0, 1e-3])[:, None, None, None]
    close(loss(scale * (student @ turn), -teacher, None).values, values)
    assert np.all(np.abs(loss(student + 1, teacher, None).values - values) > 1e-2)


def test_pairs_are_the_directions_between_attention_maps():
    students, teachers = ([normal(i + k, (2, 4, 5, 2 + i)) for i in range(3)] for k in (0, 5))
    found = jax.jit(losses.dsd_pairs)(students, teachers)

    def turns(maps):
        places = [attention(x) for x in maps]
        for i, j in ((0, 1), (0, 2), (1, 2)):
            apart = places[j] - places[i]
            yield apart / np.linalg.norm(apart, axis=(-2, -1), keepdims=True)

    expected = [
        ((r - q) ** 2).sum((-2, -1)) for r, q in zip(*map(turns, (students, teachers)), strict=True)
    ]
    close(found, np.stack(expected, -1))
    scaled = [k * x for k, x in zip((2, 5, 0.1), students, strict=True)]
    close(jax.jit(losses.dsd_pairs)(scaled[::-1], teachers[::-1]).mean(), found.mean())
