import functools
import sys

import jax
import numpy as np
import pytest
import reference
from cases import EVERY, close, compiled, few, follows, normal, seeds
from hypothesis import given
from scipy.stats import ortho_group

from kdjax import losses

# More pixels than channels (the Gram form), as many, and fewer (the table); no common tile.
SHAPES = [((2, 7, 9, 3), 5), ((2, 3, 3, 8), 4), ((1, 2, 3, 20), 16)]


def value_and_gradient(loss, student):
    """Values of all images, and the gradient of their mean."""

    def mean(student):
        values = loss(student)
        return values.mean(), values

    (_, values), gradient = jax.jit(jax.value_and_grad(mean, has_aux=True))(student)
    return values, gradient


@functools.cache
def pfs(**options):
    return jax.jit(functools.partial(losses.pfs, **options))


@pytest.mark.parametrize("similarity", ["cosine", "softmax"])
def test_one_pixel_is_like_itself_whatever_it_is(similarity):
    student, teacher = normal(0, (2, 1, 1, 4)), normal(1, (2, 1, 1, 3))
    np.testing.assert_allclose(pfs(similarity=similarity)(student, teacher), 0, atol=1e-6)


@pytest.mark.parametrize("similarity", ["cosine", "softmax"])
@pytest.mark.parametrize(("shape", "channels"), SHAPES)
def test_value_and_gradient_are_the_formula(similarity, shape, channels):
    student, teacher = normal(0, shape), normal(1, (*shape[:-1], channels))
    temperature = 1.0 if similarity == "cosine" else 0.7
    loss = pfs(similarity=similarity, temperature=temperature)
    expected = functools.partial(reference.pfs, similarity=similarity, temperature=temperature)
    close(loss(student, teacher), expected(np.float64(student), np.float64(teacher)))
    _, gradient = value_and_gradient(lambda s: loss(s, teacher), student)
    exact = np.float64(teacher)
    close(gradient, reference.gradient(lambda s: expected(s, exact).mean(), student))


@few
@given(seeds)
@pytest.mark.parametrize("similarity", ["cosine", "softmax"])
def test_rotations_of_the_channels_and_the_order_of_pixels_do_not_matter(similarity, seed):
    student, teacher = normal(seed), normal(seed + 1, (2, 4, 5, 3))
    loss = pfs(similarity=similarity)
    value = loss(student, teacher)
    rotations = [np.float32(ortho_group.rvs(n, random_state=seed)) for n in (6, 3)]
    close(loss(student @ rotations[0], teacher @ rotations[1]), value, 2e-5)
    order = np.random.default_rng(seed).permutation(20)
    moved = [
        x.reshape(2, 20, -1)[:, order].reshape(2, 4, 5, x.shape[-1]) for x in (student, teacher)
    ]
    close(loss(*moved), value)


@few
@given(seeds)
def test_cosines_do_not_see_the_length_of_a_pixel_and_the_softmax_does(seed):
    student, teacher = normal(seed), normal(seed + 1)
    lengths = np.exp(normal(seed + 2, (2, 4, 5, 1)))
    cosine, softmax = pfs(similarity="cosine"), pfs(similarity="softmax")
    value = cosine(student, teacher)
    assert np.all((value >= 0) & (value <= 4))
    close(cosine(lengths * student, teacher), value, 2e-5)
    ratio = softmax(2 * student, teacher) / softmax(student, teacher)
    assert np.all(np.abs(ratio - 1) > 0.1)


@pytest.mark.parametrize("pixels", [(5, 13), (8, 16)])
def test_strips_that_do_not_divide_the_pixels_give_the_whole_table(pixels, monkeypatch):
    monkeypatch.setattr(sys.modules["kdjax.losses.pfs"], "_STRIP", 3 * pixels[0] * pixels[1])
    student, teacher = normal(0, (1, *pixels, 4)), normal(1, (1, *pixels, 3))
    value, gradient = value_and_gradient(
        lambda s: losses.pfs(s, teacher, similarity="softmax"), student
    )
    expected = functools.partial(reference.pfs, teacher=np.float64(teacher), similarity="softmax")
    close(value, expected(np.float64(student)))
    close(gradient, reference.gradient(lambda s: expected(s).mean(), student))


def test_a_pixel_without_features_pulls_on_nothing():
    student, teacher = normal(0), normal(1)
    student[0, 1, 2] = 0
    _, gradient = value_and_gradient(lambda s: losses.pfs(s, teacher), student)
    assert np.linalg.norm(gradient[0, 1, 2]) < 1.0


@pytest.mark.parametrize("window", [(2, 2), (3, 2), (1, 1)])
def test_skd_pairwise_value_and_gradient_are_the_formula(window):
    shape = (2, 5, 4, 3)
    student, teacher = normal(0, shape), normal(1, (2, 5, 4, 6))
    values, gradient = value_and_gradient(
        lambda s: losses.skd_pairwise(s, teacher, window=window), student
    )
    exact = np.float64(teacher)
    close(values, reference.skd_pairwise(np.float64(student), exact, window))
    # The gradient does not pass through the norm.
    norms = [
        np.linalg.norm(reference.pooled_nodes(np.float64(x), *window), axis=-1, keepdims=True)
        for x in student
    ]
    expected = reference.gradient(
        lambda s: reference.skd_pairwise(s, exact, window, norms).mean(), student
    )
    close(gradient, expected)


def test_skd_pairwise_without_pooling_is_the_cosine_form():
    student, teacher = normal(0), normal(1)
    pairwise = jax.jit(losses.skd_pairwise, static_argnames="window")
    close(pairwise(student, teacher, window=1), pfs()(student, teacher), 1e-6)


def test_skd_pairwise_takes_half_the_map_unless_told_otherwise():
    student, teacher = normal(0, (1, 6, 9, 3)), normal(1, (1, 6, 9, 3))
    close(
        jax.jit(losses.skd_pairwise)(student, teacher),
        reference.skd_pairwise(np.float64(student), np.float64(teacher), (3, 4)),
    )


def cirkd(student, teacher, temperature):
    """Table by table, of every image with every image."""
    units = []
    for maps in (student, teacher):
        pixels = np.float64(maps).reshape(len(maps), -1, maps.shape[-1])
        units.append(pixels / np.linalg.norm(pixels, axis=-1, keepdims=True))
    out = np.zeros(len(student))
    for i, j in np.ndindex(len(student), len(student)):
        q, p = (reference.softmax(x[i] @ x[j].T / temperature) for x in units)
        out[i] += np.mean(np.sum(p * np.log(p / q), -1)) / len(student)
    return out


def test_cirkd_value_and_gradient_are_the_formula():
    student, teacher = normal(0), normal(1)
    found = compiled(EVERY["cirkd_minibatch"])(student, teacher, None)
    close(found.values, cirkd(student, teacher, 0.5))
    follows(found.by_student, lambda s: cirkd(s, teacher, 0.5).mean(), student)


def test_cirkd_in_strips_and_groups_and_of_one_image(monkeypatch):
    """Rows that do not divide the pixels; groups as batches; and PFS as the case of one image."""
    student, teacher = normal(0, (4, 3, 5, 4)), normal(1, (4, 3, 5, 3))
    expected = {2: np.concatenate([cirkd(student[i], teacher[i], 0.1) for i in ([0, 1], [2, 3])])}
    expected |= {4: cirkd(student, teacher, 0.1)}
    expected |= {1: np.concatenate([cirkd(student[[i]], teacher[[i]], 0.1) for i in range(4)])}
    for entries in (2**23, 4 * 4 * 15 * 4):
        monkeypatch.setattr(sys.modules["kdjax.losses.cirkd"], "_ENTRIES", entries)

        @jax.jit
        def found(student, teacher):
            values = {g: losses.cirkd_minibatch(student, teacher, group=g) for g in expected}
            return values | {0: losses.cirkd_minibatch(student, teacher)}

        values = found(student, teacher)
        for group, value in values.items():
            close(value, expected[group or 4])
    units = (
        x.shape[-1] ** 0.25 * x / np.linalg.norm(x, axis=-1, keepdims=True)
        for x in (student, teacher)
    )
    close(pfs(similarity="softmax", temperature=0.1)(*units), values[1])


def test_cirkd_sees_neither_lengths_nor_basis_nor_order():
    student, teacher = normal(0), normal(1)
    loss = compiled(EVERY["cirkd_minibatch"])
    value = loss(student, teacher, None).mean
    turn = np.linalg.qr(normal(3, (6, 6)))[0]
    lengths = np.exp(normal(4, (2, 4, 5, 1)))
    close(loss(lengths * (student @ turn), teacher, None).mean, value)
    order = np.random.default_rng(0).permutation(20)
    moved = [x.reshape(2, 20, 6)[::-1, order].reshape(x.shape) for x in (student, teacher)]
    close(loss(*moved, None).mean, value)


def test_cirkd_pools_before_anything_else():
    student, teacher = normal(0, (2, 5, 4, 3)), normal(1, (2, 5, 4, 3))
    # The fifth row fills only half a window.
    tall = [np.pad(x, [(0, 0), (0, 1), (0, 0), (0, 0)]) for x in (student, teacher)]
    pooled = [x.reshape(2, 3, 2, 2, 2, 3).sum((2, 4)) for x in tall]
    loss = jax.jit(functools.partial(losses.cirkd_minibatch, pool=2))
    close(loss(student, teacher), cirkd(*pooled, 0.1))
