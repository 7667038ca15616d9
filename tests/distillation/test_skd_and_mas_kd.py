"""SKD's discriminator and MasKD's tokens, against their formulas in float64."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from field import close, given, measure, normal, over_devices, resumed_from

from kdjax import losses
from kdjax.distillation import Distiller, Spec, term
from kdjax.distillation.methods import mas_kd, skd
from kdjax.distillation.methods.mas_kd import MasKD, Tokens
from kdjax.distillation.methods.skd import Discriminator, Holistic
from kdjax.utils.errors import UserError

eight = pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices (tests/conftest.py)")
SCORES = Spec(3, scores=True)
STUDENT, TEACHER = 2 * normal(0, 8, 18, 16, 3), normal(1, 8, 18, 16, 3) + 0.5
HINGE = Holistic(channels=(8, 9), discriminator_rate=0.01)
WGAN = dataclasses.replace(HINGE, channels=(6,), objective="wgan_gp", discriminator_decay=0.9)


def drawn(loss=HINGE):
    """A discriminator whose parts all do something."""
    state = loss.init_state(SCORES, SCORES)
    leaves, tree = jax.tree.flatten(state.trained)
    leaves = [x + 0.3 * normal(seed, *x.shape) for seed, x in enumerate(leaves)]
    return state._replace(trained=jax.tree.unflatten(tree, leaves))


def convolved(params, x, *, stride, around):
    """A convolution with zeros around, in float64."""
    kernel = params["kernel"]
    rows, columns = kernel.shape[:2]
    x = np.pad(x, [(0, 0), (around, around), (around, around), (0, 0)])
    height, width = (
        (n - k) // stride + 1 for n, k in zip(x.shape[1:3], kernel.shape[:2], strict=True)
    )
    return params["bias"] + sum(
        x[:, i : i + stride * height : stride, j : j + stride * width : stride] @ kernel[i, j]
        for i, j in itertools.product(range(rows), range(columns))
    )


def judged(params, directions, x):
    """The discriminator in float64."""
    params, directions, x = jax.tree.map(np.float64, (params, directions, x))
    x = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)
    x = x * params["norm"]["scale"] + params["norm"]["shift"]
    for layer, direction in zip(params["layers"], directions, strict=True):
        kernel = layer["kernel"]
        kernel = kernel / np.linalg.norm(kernel.reshape(-1, len(direction)) @ direction)
        x = convolved({"kernel": kernel, "bias": layer["bias"]}, x, stride=2, around=1)
        x = np.where(x > 0, x, 0.1 * x)
        flat = x.reshape(len(x), -1, x.shape[-1])
        query, key, value = (
            flat @ layer["attention"][name]["kernel"][0, 0]
            + layer["attention"][name].get("bias", 0)
            for name in ("query", "key", "value")
        )
        shares = np.exp(query @ key.swapaxes(1, 2))
        shares /= shares.sum(-1, keepdims=True)
        x = x + layer["attention"]["gamma"] * (shares @ value).reshape(x.shape)
    return convolved(params["last"], x, stride=1, around=0)


def mistaken(params, directions):
    student, teacher = (judged(params, directions, x) for x in (STUDENT, TEACHER))
    return np.maximum(1 - teacher, 0).mean() + np.maximum(1 + student, 0).mean()


def test_the_student_is_judged_by_the_discriminator_of_before_its_training():
    before = drawn()
    value, state, logged, (_, by_student, by_teacher) = measure(
        HINGE, {}, before, given(STUDENT, TEACHER)
    )
    directions = []
    for layer, direction in zip(before.trained["layers"], before.directions, strict=True):
        matrix = np.float64(layer["kernel"]).reshape(-1, len(direction))
        direction = matrix.T @ (matrix @ np.float64(direction))
        directions.append(direction / np.linalg.norm(direction))
    jax.tree.map(close, state.directions, directions)
    assert judged(before.trained, directions, STUDENT).shape == (8, 1, 1, 1)
    close(value, -judged(before.trained, directions, STUDENT).mean(), 1e-4)
    close(logged["discriminator"], mistaken(before.trained, directions), 1e-4)
    jax.tree.map(np.testing.assert_array_equal, state.judge, before.trained)
    # This step's training does not affect the student.
    step = 1e-5 * normal(9, *STUDENT.shape)
    ahead, behind = (
        -judged(before.trained, directions, STUDENT + sign * np.float64(step)).mean()
        for sign in (1, -1)
    )
    close(np.sum(np.float64(by_student) * step), (ahead - behind) / 2, 1e-3)
    assert not np.asarray(by_teacher).any()


def test_the_discriminator_goes_down_its_loss_by_adam():
    before = drawn()
    states = [before]
    for _ in range(2):
        states.append(measure(HINGE, {}, states[-1], given(STUDENT, TEACHER))[1])

    def slope(state, path):
        """Returns the float64 derivative of the loss with respect to one entry of a leaf."""
        leaves = jax.tree.leaves(jax.tree.map(np.float64, state.judge))
        tree = jax.tree.structure(state.judge)
        found = []
        for sign in (1, -1):
            moved = [leaf.copy() for leaf in leaves]
            moved[path].flat[0] += sign * 1e-5
            found.append(mistaken(jax.tree.unflatten(tree, moved), state.directions))
        return (found[0] - found[1]) / 2e-5

    for path in (1, 3, 7, 9, 13, 18, 19):
        first, second = (slope(state, path) for state in states[1:])
        at = [float(jax.tree.leaves(state.trained)[path].ravel()[0]) for state in states]
        # With both averages at 0 in the beginning, and corrected for that.
        assert at[1] - at[0] == pytest.approx(-0.01 * np.sign(first), rel=1e-3), path
        mean = (0.9 * 0.1 * first + 0.1 * second) / (1 - 0.9**2)
        square = (0.99 * 0.01 * first**2 + 0.01 * second**2) / (1 - 0.99**2)
        assert at[2] - at[1] == pytest.approx(-0.01 * mean / np.sqrt(square), rel=2e-2), path
    assert int(states[-1].steps) == 2


def test_it_learns_to_tell_the_two_apart_and_equals_it_cannot():
    state, seen = HINGE.init_state(SCORES, SCORES), []
    for _ in range(40):
        state = measure(HINGE, {}, state, given(STUDENT, TEACHER))[1]
        seen.append(float(state.loss))
    assert seen[-1] < 0.5 * seen[0]
    value, same, _, (_, by_student, _) = measure(HINGE, {}, drawn(), given(TEACHER, TEACHER))
    assert float(same.loss) >= 2
    assert value != 0
    assert np.asarray(by_student).any()  # not a loss that is still where both agree


def test_the_norm_of_a_kernel_comes_to_one():
    kernel, direction = normal(5, 4, 4, 3, 8), jnp.ones(8) / 8**0.5
    for _ in range(200):
        direction = skd._iterate(kernel, direction)
    largest = np.linalg.svd(np.float64(kernel).reshape(-1, 8), compute_uv=False)[0]
    close(np.linalg.norm(kernel.reshape(-1, 8) @ np.asarray(direction)), largest, 1e-5)


def test_the_penalty_is_how_far_a_slope_is_from_one():
    direction = np.float64(normal(6, 1, 5, 4, 3))
    direction /= np.linalg.norm(direction)
    x = normal(7, 2, 5, 4, 3), normal(8, 2, 5, 4, 3)
    for scale, expected in ((1.0, 0.0), (3.0, 4.0), (0.0, 1.0)):
        of = functools.partial(lambda scale, x: scale * jnp.sum(x * direction, (1, 2, 3)), scale)
        found = skd._gradient_penalty(of, *x, jax.random.key(0))
        assert float(found) == pytest.approx(expected, abs=1e-5)
    # In between the two, at a place of its own for each image.
    share = np.asarray(jax.random.uniform(jax.random.key(0), (2, 1, 1, 1)))
    between = share * x[1] + (1 - share) * x[0]
    found = skd._gradient_penalty(lambda x: x**2 / 2, *x, jax.random.key(0))
    lengths = np.sqrt((np.float64(between) ** 2).sum((1, 2, 3)))
    close(found, ((lengths - 1) ** 2).mean())


@pytest.mark.thorough
def test_wgan_gp_is_a_difference_of_means_and_a_penalty():
    before, inputs = drawn(WGAN), given(STUDENT, TEACHER)
    value, state, *_ = measure(WGAN, {}, before, inputs)
    plain = judged(state.judge, state.directions, STUDENT).mean()
    plain -= judged(state.judge, state.directions, TEACHER).mean()
    score = functools.partial(skd._judge, state.judge, state.directions)
    penalty = jax.jit(functools.partial(skd._gradient_penalty, score))(STUDENT, TEACHER, inputs.key)
    close(state.loss, plain + 10 * penalty, 1e-4)
    close(value, -judged(state.judge, state.directions, STUDENT).mean(), 1e-4)
    # Its rate has come down when half of the run is done.
    half = dataclasses.replace(inputs, progress=jnp.asarray(0.5))
    later = measure(WGAN, {}, before, half)[1]
    moved = [
        np.asarray(x.trained["last"]["bias"] - before.trained["last"]["bias"])
        for x in (state, later)
    ]
    close(moved[1], 0.5**0.9 * moved[0], 1e-3)


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_extreme_scores_are_judged_by_finite_numbers(scale):
    found = measure(WGAN, {}, drawn(WGAN), given(scale * STUDENT, scale * TEACHER))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


@pytest.mark.thorough
@eight
def test_neither_discriminator_nor_tokens_depend_on_the_devices():
    cases = [
        (WGAN, drawn(WGAN), given(STUDENT, TEACHER), {"trained": ()}),
        (MASKED, MASKED.init_state(SCORES, SCORES), labeled(0.0), {}),
        (MASKED, fixed(normal(3, 4, 3)), labeled(0.5), {}),
    ]
    for loss, state, inputs, kept in cases:
        expected, found = (measure(loss, {}, state, x) for x in (inputs, over_devices(inputs)))
        close(found[0], expected[0], 1e-4)
        close(found[3][1], expected[3][1], 1e-4)
        # Adam makes a step of the mere rounding of a slope that is 0, as that of a bias.
        states = [x[1]._replace(**kept) for x in (found, expected)]
        for mine, theirs in zip(*map(jax.tree.leaves, states), strict=True):
            assert np.abs(mine - theirs).max() <= 1e-3 * max(np.abs(theirs).max(), 1e-2)


@pytest.mark.thorough
def test_training_goes_on_from_a_checkpoint(tmp_path):
    for loss, begun, inputs in (
        (HINGE, HINGE.init_state(SCORES, SCORES), given(STUDENT, TEACHER)),
        (MASKED, MASKED.init_state(SCORES, SCORES), labeled(0.1)),
    ):
        state = measure(loss, {}, begun, inputs)[1]
        found = resumed_from(tmp_path / type(loss).__name__, {}, state)
        assert isinstance(found, type(state))
        going, resumed = (measure(loss, {}, x, inputs)[1] for x in (state, found))
        jax.tree.map(np.testing.assert_array_equal, resumed, going)


MASKED = MasKD(count=4, fitted_until=0.2)
LABELS = np.random.default_rng(4).choice([0, 1, 2, 255], (8, 36, 32)).astype(np.int32)


def labeled(progress, student=STUDENT, teacher=TEACHER, labels=LABELS):
    inputs = given(student, teacher, losses.resize_labels(labels, student.shape[1:3]))
    return dataclasses.replace(inputs, progress=jnp.float32(progress), full_labels=labels)


def fixed(tokens):
    return Tokens(jnp.asarray(tokens), jnp.zeros_like(tokens), jnp.zeros(()))


def masks_of(tokens, scores):
    return 1 / (1 + np.exp(-np.float64(scores) @ np.float64(tokens).T))


def test_mas_kd_is_a_squared_distance_under_each_mask():
    tokens = normal(3, 4, 3)
    value, state, logged, (_, by_student, by_teacher) = measure(
        MASKED, {}, fixed(tokens), labeled(0.2)
    )
    masks, square = masks_of(tokens, TEACHER), (np.float64(STUDENT) - TEACHER) ** 2
    of_each = np.einsum("bhwt,bhwk->btk", masks**2, square)
    expected = 0.5 * np.mean(of_each / (masks.sum((1, 2)) + 1e-5)[..., None])
    close(value, expected)
    close(logged["mask_share"], masks.mean())
    np.testing.assert_array_equal(state.tokens, tokens)  # fitted no longer
    assert np.asarray(by_student).any()
    assert not np.asarray(by_teacher).any()
    # The order of tokens is nothing, and twice as far is four times as much.
    turned = measure(MASKED, {}, fixed(tokens[::-1]), labeled(0.2))
    close(turned[0], expected)
    far = measure(MASKED, {}, fixed(tokens), labeled(0.2, student=2 * STUDENT - TEACHER))
    close(far[0], 4 * expected, 1e-4)
    same = measure(MASKED, {}, fixed(tokens), labeled(0.2, student=TEACHER))
    assert float(same[0]) == 0
    assert not np.asarray(same[3][1]).any()
    # The masks are of the teacher's own scores, and not of their order alone.
    other = measure(
        MASKED, {}, fixed(tokens), labeled(0.2, student=STUDENT + 1, teacher=TEACHER + 1)
    )
    assert float(other[0]) != pytest.approx(expected, rel=1e-3)


def test_full_masks_make_it_half_the_squared_distance():
    teacher = np.abs(TEACHER) + 1
    value, *_ = measure(MASKED, {}, fixed(np.full((4, 3), 50.0)), labeled(0.2, teacher=teacher))
    close(value, losses.l2(STUDENT, teacher).mean() / 2)


def objective(tokens):
    """The objective of the tokens in float64, with labels of the scores' size."""
    masks, valid = masks_of(tokens, TEACHER), SMALL != 255
    scores = np.float64(TEACHER) * masks.sum(-1, keepdims=True)
    logs = scores - np.logaddexp.reduce(scores, -1, keepdims=True)
    entropy = -np.take_along_axis(logs, np.where(valid, SMALL, 0)[..., None], -1)[..., 0]
    dice = []
    for image in masks.reshape(8, -1, 4):
        for one, other in itertools.permutations(image.T, 2):
            dice.append(2 * one @ other / (one @ one + other @ other + 2e-12))
    return entropy[valid].mean() + np.mean(dice)


SMALL = np.asarray(losses.resize_labels(LABELS, (18, 16)))


def test_tokens_are_fitted_to_the_labels_in_the_first_part_of_a_run():
    state = MASKED.init_state(SCORES, SCORES)
    close(np.std(MasKD(count=500).init_state(SCORES, SCORES).tokens), 0.01, 0.05)
    states = [state]
    for progress in (0.0, 0.1):
        inputs = labeled(progress, labels=SMALL)
        value, after, logged, (_, by_student, _) = measure(MASKED, {}, states[-1], inputs)
        close(logged["fitting"], objective(states[-1].tokens))
        assert float(value) == 0
        assert not np.asarray(by_student).any()
        states.append(after)

    def slope(tokens):
        tokens, found = np.float64(tokens), np.zeros((4, 3))
        for place in np.ndindex(4, 3):
            step = np.zeros((4, 3))
            step[place] = 1e-5
            found[place] = (objective(tokens + step) - objective(tokens - step)) / 2e-5
        return found

    start, middle, end = (np.float64(x.tokens) for x in states)
    first = slope(start) + 1e-3 * start
    close(middle - start, -0.1 * first, 1e-3)
    second = 0.9 * first + slope(middle) + 1e-3 * middle
    close(end - middle, -0.1 * 0.5**0.9 * second, 1e-3)


@pytest.mark.torch
def test_tokens_are_fitted_with_aligned_corners_as_the_authors():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    functional = torch.nn.functional
    truth = np.random.default_rng(0).choice([0, 1, 2, 255], (8, 50, 33)).astype(np.int32)
    state = fixed(normal(3, 4, 3))
    _, after, logged, _ = measure(MASKED, {}, state, labeled(0.0, labels=truth))

    tokens = torch.tensor(np.asarray(state.tokens), requires_grad=True)
    scores = torch.from_numpy(TEACHER.transpose(0, 3, 1, 2).copy())
    masks = torch.sigmoid(torch.einsum("tk,bkhw->bthw", tokens, scores))
    large = functional.interpolate(
        scores * masks.sum(1, keepdim=True), truth.shape[1:], mode="bilinear", align_corners=True
    )
    loss = functional.cross_entropy(large, torch.from_numpy(truth).long(), ignore_index=255)
    flat = masks.flatten(2)
    products, own = flat @ flat.transpose(1, 2), (flat**2).sum(-1)
    dice = 2 * products / (own[:, :, None] + own[:, None])
    loss = loss + (dice * (1 - torch.eye(4))).sum() / (len(truth) * 4 * 3)
    loss.backward()
    close(logged["fitting"], loss.detach())
    gradient = (np.asarray(state.tokens) - np.asarray(after.tokens)) / 0.1 - 1e-3 * state.tokens
    close(gradient, tokens.grad, 1e-4)


def test_alike_masks_overlap_wholly_and_single_ones_not_at_all():
    mask = np.random.default_rng(0).uniform(size=(2, 3, 4, 1)).astype(np.float32)
    assert float(mas_kd._overlap(np.tile(mask, 3))) == pytest.approx(1)
    apart = np.zeros((2, 3, 4, 2), np.float32)
    apart[:, :1, :, 0] = apart[:, 1:, :, 1] = 1
    assert float(mas_kd._overlap(apart)) == 0
    assert float(mas_kd._overlap(mask)) == 0


def test_a_batch_without_labels_moves_no_token_by_its_scores():
    inputs = labeled(0.0, labels=np.full_like(LABELS, 255))
    found = measure(MASKED, {}, MASKED.init_state(SCORES, SCORES), inputs)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert 0.9 < float(found[1].loss) <= 1  # the masks of small tokens are alike


@pytest.mark.parametrize(
    ("entry", "size", "message"),
    [
        (
            term("holistic"),
            45,
            r"takes class scores of 64 x 64 or more, got 45 x 45: train on larg",
        ),
        (term("holistic", channels=(8, 8)), 15, "fewer channels than the 2 of .8, 8."),
        (term("holistic", channels=(8, 0)), 64, "t.channels is 0; it must be positive"),
        (
            term("holistic", objective="gan"),
            64,
            't.objective is "gan"; it must be hinge or wgan_gp',
        ),
        (
            term("holistic", discriminator_rate=-1.0),
            64,
            "t.discriminator_rate is -1.0; it must be 0 or mo",
        ),
        (term("holistic", student="head", teacher="head"), 64, "needs class scores on both sides"),
        (term("mas_kd", student="head", teacher="head"), 64, "needs class scores on both sides"),
        (term("mas_kd", count=0), 64, "t.count is 0; it must be positive"),
        (term("mas_kd", fitted_until=1.0), 64, "t.fitted_until is 1.0; it must be between 0 and 1"),
        (term("mas_kd", token_rate=-1.0), 64, "t.token_rate is -1.0; it must be 0 or more"),
    ],
)
def test_what_cannot_be_is_said(entry, size, message):
    side = {"logits": Spec(3, size=(size, size)), "head": Spec(3, size=(size, size))}
    with pytest.raises(UserError, match=message):
        Distiller({"t": entry}, student=side, teacher=side)


def test_where_no_size_is_known_none_is_too_small():
    side = {"logits": Spec(3, 8)}
    distiller = Distiller({"t": term("holistic")}, student=side, teacher=side)
    found: Discriminator = jax.eval_shape(distiller.init, jax.random.key(0))[1]["t"]
    assert [len(x) for x in found.directions] == [64, 128, 256, 512]


def test_what_is_trained_has_buffers_of_its_own():
    """The step may donate this buffer."""
    state = HINGE.init_state(SCORES, SCORES)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(set(pointers)) == len(pointers)
