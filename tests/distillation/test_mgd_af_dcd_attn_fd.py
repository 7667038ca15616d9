"""Losses that learn, against their formulas in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from field import close, given, measure, normal, over_devices

from kdjax.distillation import Distiller, Spec, term
from kdjax.distillation.methods.af_dcd import AfDCD
from kdjax.distillation.methods.attn_fd import AttnFD
from kdjax.distillation.methods.mgd import MGD
from kdjax.utils.errors import UserError

STUDENT, TEACHER = normal(0, 8, 5, 6, 4), normal(1, 8, 5, 6, 6)
ALIGNED = normal(2, 8, 5, 6, 6)  # a student's map at the teacher's channels


@functools.cache
def drawn(loss, channels=6):
    return jax.jit(lambda key: loss.init_params(key, Spec(channels), Spec(channels)))(
        jax.random.key(3)
    )


def convolved(params, x):
    """A 3x3 convolution with zeros around, in float64."""
    kernel, bias = (np.asarray(params[name], np.float64) for name in ("kernel", "bias"))
    height, width = x.shape[1:3]
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    return bias + sum(
        padded[:, row : row + height, column : column + width] @ kernel[row, column]
        for row in range(3)
        for column in range(3)
    )


def generated(params, x, kept):
    first = convolved(params["first"], np.float64(x) * kept)
    return convolved(params["second"], np.maximum(first, 0))


def kept_pixels(masked, key=0, shape=(8, 5, 6, 1)):
    return np.asarray(jax.random.bernoulli(jax.random.key(key), 1 - masked, shape))


@pytest.mark.parametrize("masked", [0.0, 0.75, 1.0])
def test_mgd_is_the_distance_of_what_is_made_from_unmasked_pixels(masked):
    loss = MGD(masked=masked)
    params = drawn(MGD())
    kept = kept_pixels(masked)
    value, _, _, (by_params, by_student, by_teacher) = measure(
        loss, params, {}, given(ALIGNED, TEACHER)
    )
    # As in the authors' code: a sum over pixels and channels, divided by the images.
    close(value, 2e-5 * np.sum((generated(params, ALIGNED, kept) - TEACHER) ** 2) / 8)
    # Masked values are not read, but the error is over all pixels.
    np.testing.assert_array_equal(np.asarray(by_student).any(-1, keepdims=True), kept)
    assert not np.asarray(by_teacher).any()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(by_params))


def test_what_mgd_makes_of_everything_may_be_the_teacher_itself():
    """With identity kernels and without a mask, the loss is plain L2."""
    center = jnp.zeros((3, 3, 6, 6)).at[1, 1].set(jnp.eye(6))
    passing = {"kernel": center, "bias": jnp.zeros(6)}
    params = {"first": passing, "second": passing}
    student = np.abs(ALIGNED)
    value, *_ = measure(MGD(masked=0.0), params, {}, given(student, TEACHER))
    close(value, 2e-5 * np.sum(np.square(student - TEACHER)) / 8)
    same, *_ = measure(MGD(masked=0.0), params, {}, given(student, student))
    assert float(same) < 1e-12


def test_masks_of_channels_and_of_the_center():
    params = drawn(MGD())

    def changed_by(loss):
        gradient = np.asarray(measure(loss, params, {}, given(ALIGNED, TEACHER))[3][1])
        return gradient != 0

    kept = kept_pixels(0.5, shape=(8, 1, 1, 6))
    found = changed_by(MGD(mask="channels", masked=0.5))
    np.testing.assert_array_equal(found, np.broadcast_to(kept, found.shape))
    hole = np.ones((8, 5, 6, 6), bool)
    hole[:, 1:3, 2:4] = False  # rows 5 // 3 to 10 // 3, columns 6 // 3 to 12 // 3
    np.testing.assert_array_equal(changed_by(MGD(mask="centre")), hole)


def contrasted(student, teacher, *, pool, patch, groups, temperature):
    """Af-DCD's contrast, vector by vector."""
    student, teacher = np.float64(student), np.float64(teacher)
    images, height, width, channels = student.shape
    down, across, size = height // pool, width // pool, channels // groups

    def pooled(x):
        x = x[:, : down * pool, : across * pool]
        return x.reshape(images, down, pool, across, pool, channels).max((2, 4))

    student, teacher = pooled(student), pooled(teacher)
    values = []
    for image in range(images):
        for top in range(0, down - patch + 1, patch):
            for left in range(0, across - patch + 1, patch):
                places = [(top + r, left + c) for r in range(patch) for c in range(patch)]
                for place in places:
                    for group in range(groups):
                        part = slice(group * size, (group + 1) * size)
                        mine = student[image][place][part]

                        def apart(row, column, other, mine=mine, image=image):
                            theirs = teacher[image, row, column]
                            theirs = theirs[other * size : (other + 1) * size]
                            return np.abs(mine - theirs).sum() / temperature

                        own = apart(*place, group)
                        others = [
                            apart(*at, g) for at in places for g in range(groups) if g != group
                        ]
                        values.append(own + np.logaddexp.reduce([-own, *(-x for x in others)]))
    return np.mean(values)


SMALL = {"pool": 2, "patch": 2, "groups": 3, "temperature": 2.0}


def test_af_dcd_is_mgd_and_a_contrast_within_patches():
    student, teacher = normal(5, 2, 9, 5, 6), normal(6, 2, 9, 5, 6)
    loss, params = AfDCD(**SMALL, alpha=3.0, contrast=2.0), drawn(MGD())
    value, _, parts, (_, by_student, by_teacher) = measure(
        loss, params, {}, given(student, teacher)
    )
    made = generated(params, student, kept_pixels(0.75, shape=(2, 9, 5, 1)))
    close(parts["imitation"], np.mean((made - teacher) ** 2))
    close(parts["contrast"], contrasted(made, teacher, **SMALL))
    # The authors' sum over 9 x 5 pixels and 6 channels, and their mean.
    close(value, 3 * 270 * parts["imitation"] + 2 * parts["contrast"])
    assert np.isfinite(by_student).all()
    assert not np.asarray(by_teacher).any()


def test_a_single_group_has_nothing_to_be_told_from():
    loss = AfDCD(**{**SMALL, "groups": 1})
    parts = measure(loss, drawn(MGD()), {}, given(normal(5, 2, 9, 5, 6), normal(6, 2, 9, 5, 6)))[2]
    assert abs(parts["contrast"]) < 1e-6


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def refined(x, learned=None):
    """CBAM in float64; of sums where nothing is learned."""
    x = np.float64(x)
    pooled = [x.max((1, 2), keepdims=True), x.mean((1, 2), keepdims=True)]
    if learned:
        (squeeze, first), (expand, second) = (
            (np.float64(learned[part]["kernel"])[0, 0], np.float64(learned[part]["bias"]))
            for part in ("squeeze", "expand")
        )
        pooled = [np.maximum(side @ squeeze + first, 0) @ expand + second for side in pooled]
    x = x * sigmoid(sum(pooled))
    pooled = [x.max(-1, keepdims=True), x.mean(-1, keepdims=True)]
    if not learned:
        return x * sigmoid(sum(pooled))
    kernel, (height, width) = np.float64(learned["spatial"]["kernel"]), x.shape[1:3]
    padded = np.pad(np.concatenate(pooled, -1), [(0, 0), (3, 3), (3, 3), (0, 0)])
    gate = sum(
        padded[:, row : row + height, column : column + width] @ kernel[row, column]
        for row in range(7)
        for column in range(7)
    )
    return x * sigmoid((gate - gate.mean()) / np.sqrt(gate.var() + 1e-5))


def test_attn_fd_is_the_distance_of_refined_maps_of_length_one():
    loss, key = AttnFD(student=("a", "b"), teacher=("a", "b"), reduction=2), jax.random.key(4)
    specs = (Spec(4), Spec(6)), (Spec(6), Spec(5))
    params = jax.jit(lambda key: loss.init_params(key, *specs))(key)
    inputs = given((STUDENT, ALIGNED), (TEACHER, normal(7, 8, 5, 6, 5)))
    value, _, parts, (by_params, by_student, by_teacher) = measure(loss, params, {}, inputs)
    expected = []
    for learned, mine, other in zip(params, inputs.student, inputs.teacher, strict=True):
        mine = refined(mine, learned) @ np.float64(learned["connector"]["kernel"])
        mine = (mine - mine.mean((0, 1, 2))) / np.sqrt(mine.var((0, 1, 2)) + 1e-5)
        sides = (x.reshape(8, -1) for x in (mine, refined(other)))
        units = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in sides)
        # 2 (1 - cos), between 0 and 4.
        expected.append(2 - 2 * np.mean(np.sum(np.prod([*units], 0), 1)))
    close(np.stack([parts["a"], parts["b"]]), expected)
    close(value, sum(expected))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((by_params, by_student)))
    assert not any(np.asarray(leaf).any() for leaf in by_teacher)
    if jax.device_count() >= 8:
        spread = measure(loss, params, {}, over_devices(inputs))
        close(spread[0], value, 1e-6)
    nothing = given((0 * STUDENT, 0 * ALIGNED), jax.tree.map(jnp.zeros_like, inputs.teacher))
    found, _, _, gradients = measure(loss, params, {}, nothing)
    assert np.isfinite(found)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices (tests/conftest.py)")
def test_what_is_drawn_for_an_image_does_not_depend_on_the_devices():
    loss, params = AfDCD(**{**SMALL, "pool": 1}), drawn(MGD())
    inputs = given(ALIGNED, TEACHER)
    expected, found = (measure(loss, params, {}, x) for x in (inputs, over_devices(inputs)))
    close(found[0], expected[0], 1e-6)
    close(found[3][1], expected[3][1])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (term("mgd", masked=1.5), "t.masked is 1.5; it must be from 0 to 1"),
        (term("mgd", alpha=-1.0), "t.alpha is -1.0; it must be 0 or more"),
        (term("mgd", mask="rows"), 't.mask is "rows"; it must be pixels or channels or centre'),
        (
            term("af_dcd", groups=3),
            r"takes maps of 16 x 16 or more, got 5 x 6; lower pool or patch",
        ),
        (term("attn_fd", student="stage4", teacher="stage4"), "name them in a tuple"),
        (term("af_dcd", pool=1, groups=4), "groups must divide the teacher's 6 channels, got 4"),
    ],
)
def test_what_cannot_be_is_said(entry, message):
    with pytest.raises(UserError, match=message):
        Distiller({"t": entry}, student={"stage4": STUDENT}, teacher={"stage4": TEACHER})
