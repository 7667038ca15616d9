"""OFD's margins, and L2 of standardised features, against their formulas in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from field import close, given, measure, normal, over_devices

from kdjax import losses
from kdjax.distillation import Distiller, Spec, term
from kdjax.distillation.methods.ofd import OFD
from kdjax.distillation.methods.phi_s import StandardizedL2
from kdjax.losses.phi_s import _hadamard
from kdjax.utils.errors import UserError

eight = pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices (tests/conftest.py)")
SHAPES = (8, 4, 4, 6), (8, 2, 2, 5)
# Not in the order of the alphabet, in which JAX has the entries of a dict.
NAMES = ("stage4", "head")
MARGINS = OFD(student=NAMES, teacher=NAMES, alpha=0.5, divisors=(2.0, 4.0))
SPECS = (Spec(6), Spec(5))


def maps(seed):
    return tuple(normal(seed + index, *shape) for index, shape in enumerate(SHAPES))


def test_ofd_is_a_distance_above_the_margins_of_all_batches():
    state = MARGINS.init_state(SPECS, SPECS)
    (student, teacher), before = (maps(0), maps(5)), maps(15)
    state = measure(MARGINS, {}, state, given(student, before))[1]
    value, state, parts, (_, by_student, by_teacher) = measure(
        MARGINS, {}, state, given(student, teacher)
    )
    expected = []
    for name, mine, *others in zip(NAMES, student, before, teacher, strict=True):
        everything = np.concatenate([np.float64(x).reshape(-1, x.shape[-1]) for x in others])
        margin = [channel[channel < 0].mean() for channel in everything.T]
        close(state[name].mean, margin, 1e-6)
        target = np.maximum(others[-1], margin)
        square = np.where((mine > target) | (target > 0), (mine - target) ** 2, 0)
        # As in the authors' code: a sum over pixels and channels, divided by the images.
        expected.append(square.sum() / len(square))
        close(parts[name], square.mean())
    close(value, 0.5 * (expected[0] / 2 + expected[1] / 4))
    # A student that is as low as the teacher, or lower, is let be.
    low = (student[0] < np.maximum(teacher[0], state["stage4"].mean)) & (teacher[0] <= 0)
    assert low.any()
    assert not np.asarray(by_student[0])[low].any()
    assert not any(np.asarray(leaf).any() for leaf in by_teacher)
    same, *_ = measure(MARGINS, {}, state, given(teacher, teacher))
    assert float(same) == 0


def test_the_margin_is_what_batch_norm_makes_it():
    """The authors' formula, of the scale and shift before the ReLU."""
    scale, shift = 1.5, 0.4
    features = (shift + scale * normal(0, 8, 64, 64, 1),)
    loss = OFD(student=("stage4",), teacher=("stage4",), divisors=(1.0,))
    state = measure(loss, {}, loss.init_state(SPECS[:1], (Spec(1),)), given(features, features))[1]
    density = math.exp(-((shift / scale) ** 2) / 2) / math.sqrt(2 * math.pi)
    below = math.erfc(shift / scale / math.sqrt(2)) / 2
    expected = shift - scale * density / below
    assert float(state["stage4"].mean[0]) == pytest.approx(expected, rel=0.02)


def test_behind_a_relu_the_margin_is_zero():
    student, teacher = maps(0), tuple(np.maximum(x, 0) for x in maps(5))
    state = MARGINS.init_state(SPECS, SPECS)
    value, state, *_ = measure(MARGINS, {}, state, given(student, teacher))
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(state))
    far = tuple(np.where(x == 0, -100.0, y) for x, y in zip(teacher, student, strict=True))
    lower, *_ = measure(MARGINS, {}, state, given(far, teacher))
    assert 0 < float(lower) < float(value)


@eight
def test_margins_do_not_depend_on_the_devices():
    inputs, state = given(maps(0), maps(5)), MARGINS.init_state(SPECS, SPECS)
    expected, found = (measure(MARGINS, {}, state, x) for x in (inputs, over_devices(inputs)))
    close(found[0], expected[0], 1e-6)
    jax.tree.map(lambda a, b: close(a, b, 1e-6), found[1], expected[1])


@pytest.mark.parametrize("size", [1, 2, 8, 12, 20, 28, 36, 96])
def test_rotations_of_equal_entries(size):
    found = _hadamard(size)
    close(found @ found.T, np.eye(size), 1e-12)
    close(np.abs(found), np.full((size, size), size**-0.5), 1e-12)


def test_where_there_is_no_such_rotation_another_is_near():
    found = _hadamard(6)
    close(found @ found.T, np.eye(6), 1e-12)


def skewed(seed, images=8):
    """Features whose channels hang together, of unlike size."""
    mixed = np.random.default_rng(9).standard_normal((12, 12)) * np.linspace(0.1, 3, 12)
    return np.float32(normal(seed, images, 4, 4, 12) @ mixed + np.arange(12))


@pytest.mark.parametrize("standardize", ["phi_s", "channel"])
def test_the_target_is_standardised_once_it_was_looked_at(standardize):
    loss = StandardizedL2(standardize=standardize, fitted_over=2)
    state = loss.init_state(Spec(12), Spec(12))
    student, seen = normal(3, 8, 4, 4, 12), [skewed(0), skewed(1), skewed(2)]
    for step, teacher in enumerate(seen[:2]):
        value, state, *_ = measure(loss, {}, state, given(student, teacher, step=step))
        assert float(value) == 0
    value, state, _, gradients = measure(loss, {}, state, given(student, seen[2], step=2))
    both = np.float64(np.concatenate(seen[:2]).reshape(-1, 12))
    close(state.mean, both.mean(0))
    assert int(state.statistics.count[0]) == len(both)  # it is not looked at any more
    centered = both - both.mean(0)
    scale = np.float64(state.scale)
    if standardize == "phi_s":
        # One variance for all channels, by one scale for all directions.
        expected = centered @ scale
        close(scale @ scale.T, np.eye(12) / centered.var(0).mean(), 1e-4)
    else:
        close(scale, 1 / centered.std(0))
        expected, scale = centered * scale, np.diag(scale)
    close(expected.var(0), np.ones(12), 1e-4)
    target = (np.float64(seen[2]) - both.mean(0)) @ scale
    close(value, np.mean((student - target) ** 2))
    assert np.asarray(gradients[1]).any()
    assert not np.asarray(gradients[2]).any()


def test_turned_features_are_as_far_apart_after_phi_s():
    features = np.float64(skewed(0).reshape(-1, 12))
    rotation, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((12, 12)))
    apart = []
    for x in (features, features @ rotation):
        centered = x - x.mean(0)
        y = centered @ np.float64(losses.phi_s(jnp.float32(centered.T @ centered / len(x))))
        apart.append(np.linalg.norm(y[:8, None] - y[None, :8], axis=-1))
    close(*apart, 1e-4)
    with pytest.raises(ValueError, match=r"covariance must be \[3, 3\], got \[3, 2\]"):
        losses.phi_s(jnp.zeros((3, 2)))


@eight
def test_what_is_fitted_does_not_depend_on_the_devices():
    loss = StandardizedL2(fitted_over=1)
    state = loss.init_state(Spec(12), Spec(12))
    inputs = given(normal(3, 8, 4, 4, 12), skewed(0), step=0)
    expected, found = (measure(loss, {}, state, x) for x in (inputs, over_devices(inputs)))
    close(found[1].mean, expected[1].mean, 1e-5)
    close(found[1].scale, expected[1].scale, 1e-4)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (term("ofd", student="stage4", teacher="stage4"), "a map for each of its 5 divisors"),
        (
            term("ofd", student=NAMES, teacher=NAMES, divisors=(1.0, 0.0)),
            "t.divisors is 0.0; it must be positive",
        ),
        (
            term("standardized_l2", standardize="all"),
            't.standardize is "all"; it must be phi_s or channel',
        ),
        (term("standardized_l2", fitted_over=0), "t.fitted_over is 0; it must be positive"),
    ],
)
def test_what_cannot_be_is_said(entry, message):
    side = {"stage4": Spec(6, 8), "head": Spec(6, 8)}
    with pytest.raises(UserError, match=message):
        Distiller({"t": entry}, student=side, teacher=side)
