"""Tests the training step and the optimizer."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from small_step import STEPS, make_batch, setup

from kdjax.models import NNXNetwork, create
from kdjax.training.optimizer import (
    OptimizerOptions,
    depends_on_steps,
    learning_rate_schedule,
    make_optimizer,
)
from kdjax.training.sharding import Placement
from kdjax.utils.errors import UserError


def assert_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def unequal(before, after):
    before, after = jax.device_get((before, after))
    return jax.tree.map(lambda a, b: not np.array_equal(a, b), before, after)


@pytest.fixture(scope="module")
def one_step():
    step, state, teacher = setup(ema_decay=0.75)
    before = jax.device_get(teacher)
    after, metrics = jax.jit(step)(state, teacher, make_batch())
    return types.SimpleNamespace(
        state=state, after=after, metrics=metrics, teacher=teacher, teacher_before=before
    )


def test_a_step_trains_student_and_adapters_and_logs_every_term(one_step):
    assert jax.tree.all(unequal(one_step.state.params, one_step.after.params))
    # The step also updates batch norm's running statistics and the class statistics.
    for before, after in (
        (one_step.state.model_state, one_step.after.model_state),
        (one_step.state.terms, one_step.after.terms),
    ):
        assert any(jax.tree.leaves(unequal(before, after)))
    assert float(one_step.metrics["learning_rate"]) == pytest.approx(0.01)
    assert set(one_step.metrics) == {
        "loss",
        "cross_entropy",
        "auxiliary_cross_entropy",
        "logits_cwd",
        "head_cwd",
        "augmented",
        "learning_rate",
        "gradient_norm",
    }
    assert int(one_step.after.step) == 1


def test_the_teacher_is_frozen_and_has_no_optimizer_state(one_step):
    jax.tree.map(np.testing.assert_array_equal, one_step.teacher_before, one_step.teacher)
    shapes = {leaf.shape for leaf in jax.tree.leaves(one_step.state.opt_state) if leaf.ndim > 1}
    trained = {leaf.shape for leaf in jax.tree.leaves(one_step.state.params) if leaf.ndim > 1}
    assert shapes == trained


def test_the_teacher_may_see_the_clean_view_and_needs_no_labels():
    step, state, teacher = setup()
    step, batch = jax.jit(step), make_batch()
    _, same = step(state, teacher, batch | {"clean": batch["image"]})
    _, clean = step(state, teacher, batch | {"clean": make_batch()["image"]})
    assert clean["cross_entropy"] == same["cross_entropy"]
    for term in ("logits_cwd", "head_cwd"):
        assert clean[term] != same[term]
    # Without labels, the terms that read no labels stay the same.
    unlabelled = batch | {"clean": batch["image"], "label": np.full_like(batch["label"], 255)}
    after, metrics = step(state, teacher, unlabelled)
    for part in ("cross_entropy", "auxiliary_cross_entropy", "augmented"):
        assert metrics[part] == 0
    assert metrics["logits_cwd"] == same["logits_cwd"] > 0
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(after.params))


def test_eight_devices_compute_what_one_does():
    step, state, teacher = setup(ema_decay=0.75)  # compiled above
    batch = make_batch()
    placement = Placement()
    assert placement.mesh.size == 8
    single, metrics = jax.jit(step)(state, teacher, batch)
    sharded, sharded_metrics = jax.jit(step)(
        *jax.device_put((state, teacher), placement.replicated), placement.put_batch(batch)
    )
    assert_close(metrics, sharded_metrics, rtol=1e-4, atol=1e-6)
    # Batch norm adds in another order, which affects gradients, momentum, and weights.
    assert_close(single.params, sharded.params, rtol=1e-3, atol=2e-6)
    assert_close(single.model_state, sharded.model_state, rtol=1e-4, atol=1e-6)
    # Class statistics include the pixels of all devices.
    assert float(single.terms["augmented"].count.sum()) > 8
    assert_close(single.terms, sharded.terms, rtol=1e-4, atol=1e-6)


def test_accumulation_averages_the_micro_batches():
    half = make_batch(4)
    # Micro-batches take every second example, so both of these are `half`.
    batch = {key: np.repeat(value, 2, axis=0) for key, value in half.items()}
    step, state, teacher = setup(dropout=0.0)
    whole, metrics = jax.jit(step)(state, teacher, half)
    step, state, teacher = setup(dropout=0.0, accumulate=2)
    parts, accumulated = jax.jit(step)(state, teacher, batch)
    assert_close(metrics, accumulated, rtol=1e-4, atol=1e-6)
    assert_close(whole.params, parts.params, rtol=1e-3, atol=1e-6)
    # Statistics see every micro-batch, one after the other.
    seen, twice = (state.terms["augmented"].count for state in (whole, parts))
    np.testing.assert_array_equal(twice, 2 * seen)
    assert any(
        not np.allclose(a, b)
        for a, b in zip(*map(jax.tree.leaves, (whole.model_state, parts.model_state)), strict=True)
    )


@pytest.mark.thorough
def test_every_micro_batch_and_step_draws_its_own_dropout():
    half = make_batch(4)
    batch = {key: np.repeat(value, 2, axis=0) for key, value in half.items()}
    step, state, teacher = setup(dropout=0.9)
    accumulate, *_ = setup(dropout=0.9, accumulate=2)

    one = jax.jit(step)
    first, later = (one(state.replace(step=np.int32(done)), teacher, half)[1] for done in (0, 1))
    assert float(first["cross_entropy"]) != float(later["cross_entropy"])
    both = jax.jit(accumulate)(state, teacher, batch)[1]
    # With the same dropped units in both micro-batches, this would equal the first.
    assert float(both["logits_cwd"]) != pytest.approx(float(first["logits_cwd"]), rel=1e-2)


def test_the_augmentation_grows_with_the_share_of_steps_done():
    step, state, teacher = setup(dropout=0.0)
    batch = make_batch(4)
    done = [state.replace(step=np.int32(steps)) for steps in (0, STEPS // 2, STEPS)]
    start, half, end = (jax.jit(step)(s, teacher, batch)[1]["augmented"] for s in done)
    assert float(start) < float(half) < float(end)


def test_moving_average_of_the_weights(one_step):
    state, after = one_step.state, one_step.after
    start, new = state.params["student"], after.params["student"]

    def average(start, new):
        return jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, *jax.device_get((start, new)))

    assert_close(after.ema[0], average(start, new), rtol=1e-6, atol=1e-7)
    running = average(state.model_state, after.model_state)
    assert_close(after.ema[1], running, rtol=1e-6, atol=1e-7)
    jax.tree.map(np.testing.assert_array_equal, after.student()["params"], after.ema[0])


PARAMS = {
    "backbone": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
    **{name: jnp.ones(2) for name in ("head", "auxiliary_head", "terms")},
}


def apply(optimizer, steps=3):
    state, params = optimizer.init(PARAMS), PARAMS
    for _ in range(steps):
        gradients = jax.tree.map(jnp.ones_like, params)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return params


def optimizer_settings(changes):
    settings = {"learning_rate": 0.1, "momentum": 0.0, "weight_decay": 0.0}
    return OptimizerOptions(**(settings | changes))


def optimize(changes, steps=3):
    return apply(make_optimizer(optimizer_settings(changes), STEPS), steps)


def test_sgd_is_pytorchs_with_poly_decay():
    expected, momentum = 1.0, 0.0
    for step in range(3):
        momentum = 0.9 * momentum + (1.0 + 0.01 * expected)
        expected -= ((0.1 - 0.01) * (1 - step / STEPS) ** 0.9 + 0.01) * momentum
    params = optimize({"momentum": 0.9, "weight_decay": 0.01, "min_learning_rate": 0.01})
    for leaf in jax.tree.leaves(params):
        np.testing.assert_allclose(leaf, expected, rtol=1e-6)


def test_head_multiplier_mask_of_decay_and_clipping():
    plain, faster = optimize({}, 1), optimize({"head_multiplier": 10.0}, 1)
    for name in ("head", "auxiliary_head", "terms"):
        np.testing.assert_allclose(1 - faster[name], 10 * (1 - plain[name]), rtol=1e-5)
    np.testing.assert_array_equal(faster["backbone"]["kernel"], plain["backbone"]["kernel"])
    masked = optimize({"weight_decay": 0.5, "decay_norm_and_bias": False}, 1)
    assert float(masked["backbone"]["kernel"][0, 0]) == pytest.approx(1 - 0.1 * 1.5)
    assert float(masked["backbone"]["bias"][0]) == pytest.approx(1 - 0.1)
    clipped = optimize({"gradient_clip": 1.0}, 1)
    moved = jax.tree.map(lambda leaf: 1 - leaf, clipped)
    assert float(optax.tree.norm(moved)) == pytest.approx(0.1, rel=1e-5)


def test_biases_and_embeddings_do_not_decay_whatever_their_shape():
    """The example from kdjax's networks is Swin's table of position biases."""

    def make():
        return create("upernet_swin_t", num_classes=3, width=8, rngs=nnx.Rngs(0)).backbone.stages[0]

    swin = nnx.to_pure_dict(nnx.state(nnx.eval_shape(make), nnx.Param))
    own = {"pos_embed": jnp.ones((1, 4, 8)), "heads": {"bias": jnp.ones((2, 4))}}
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), {"swin": swin, "own": own})
    settings = OptimizerOptions(weight_decay=0.5, decay_norm_and_bias=False)
    optimizer = make_optimizer(settings, STEPS)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(lambda: optimizer.update(zeros, optimizer.init(params), params))()
    decayed = jax.tree.map(lambda leaf: bool(leaf.any()), updates)
    attention = decayed["swin"][0]["attention"]
    assert not attention["relative_position_bias_table"]
    assert attention["in_projection"] == {"kernel": True, "bias": False}
    assert not any(jax.tree.leaves(decayed["own"]))


def test_names_that_there_are_not():
    with pytest.raises(UserError, match='unknown optimizer "lion": there are: sgd, adamw'):
        optimize({"name": "lion"})
    with pytest.raises(UserError, match='unknown schedule "cosine": there are: poly'):
        optimize({"schedule": "cosine"})
    with pytest.raises(UserError, match='"optax:safe_norm", which takes no learning_rate'):
        optimize({"name": "optax:safe_norm", "options": {"x": 1.0, "min_norm": 1.0}})
    with pytest.raises(UserError, match=r"which returns .*, no optax\.GradientTransf"):
        optimize({"name": f"{__name__}:no_optimizer"})
    with pytest.raises(UserError, match=r"which does not take its options: .*halves"):
        optimize({"name": "optax:lion", "options": {"mu_dtype": "halves"}})


def no_optimizer(learning_rate):
    return learning_rate


def halving(learning_rate, steps, *, times=1):
    return lambda step: learning_rate * 0.5 ** (times * step / steps)


def own_optimizer(learning_rate, **options):
    return optax.chain(optax.scale(options["times"]), optax.scale_by_learning_rate(learning_rate))


def exactly(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_any_optimizer_is_what_it_is_by_hand():
    """Compares Lion in low precision, AdamW, SGD, and a custom optimizer."""
    rate = learning_rate_schedule(optimizer_settings({}), STEPS)
    options = {"b1": 0.8, "mu_dtype": "bfloat16"}
    lion = optimize({"name": "optax:lion", "options": options, "weight_decay": 0.1})
    exactly(lion, apply(optax.lion(rate, weight_decay=0.1, **options)))
    # Options take precedence.
    lion = optimize({"name": "optax:lion", "options": {"weight_decay": 0.2}, "weight_decay": 0.1})
    exactly(lion, apply(optax.lion(rate, weight_decay=0.2)))
    decay = optax.add_decayed_weights(0.1)
    schedule = optax.scale_by_learning_rate(rate)
    adamw = optax.chain(optax.scale_by_adam(), decay, schedule)
    exactly(optimize({"name": "adamw", "weight_decay": 0.1}), apply(adamw))
    sgd = optax.chain(optax.clip_by_global_norm(1.0), decay, optax.trace(0.9), schedule)
    same = {"momentum": 0.9, "weight_decay": 0.1, "gradient_clip": 1.0}
    exactly(optimize(same), apply(sgd))
    # A momentum that has a default keeps it.
    exactly(optimize({"name": "optax:rmsprop", "momentum": 0.9}), apply(optax.rmsprop(rate)))
    own = optimize({"name": f"{__name__}:own_optimizer", "options": {"times": 3.0}})
    exactly(own, apply(optax.chain(optax.scale(3.0), schedule)))


@pytest.mark.parametrize(
    ("schedule", "options", "expected"),
    [
        ("optax:cosine_decay_schedule", {}, optax.cosine_decay_schedule(0.1, STEPS)),
        (
            "optax:cosine_decay_schedule",
            {"init_value": 0.3, "decay_steps": 4},
            optax.cosine_decay_schedule(0.3, 4),
        ),
        (
            "optax:warmup_cosine_decay_schedule",
            {"init_value": 0.0, "warmup_steps": 2},
            optax.warmup_cosine_decay_schedule(0.0, 0.1, 2, STEPS),
        ),
        ("optax:constant_schedule", {}, optax.constant_schedule(0.1)),
        (f"{__name__}:halving", {"times": 2}, halving(0.1, STEPS, times=2)),
    ],
)
def test_any_schedule(schedule, options, expected):
    changes = {"schedule": schedule, "schedule_options": options}
    rate = learning_rate_schedule(optimizer_settings(changes), STEPS)
    assert [float(rate(s)) for s in range(STEPS)] == [float(expected(s)) for s in range(STEPS)]
    moved = 1 - optimize(changes, 1)["head"]
    np.testing.assert_allclose(moved, float(expected(0)), rtol=1e-5)
    warm = learning_rate_schedule(optimizer_settings(changes | {"warmup_steps": 4}), STEPS)
    assert float(warm(2)) == pytest.approx(0.5 * float(expected(2)))
    fixed = schedule == "optax:constant_schedule" or "decay_steps" in options
    assert depends_on_steps(optimizer_settings(changes)) != fixed


def test_which_parameters_decay_and_learn_faster_by_their_paths():
    decaying = {"weight_decay": 0.5, "no_decay": ("bias$", "^head")}
    for name in ("sgd", "adamw", "optax:lion"):
        plain = optimize({"name": name}, 1)
        decayed = optimize({"name": name} | decaying, 1)
        still = jax.tree.map(lambda a, b: bool((a == b).all()), plain, decayed)
        assert still == {
            "backbone": {"kernel": False, "bias": True},
            "head": True,
            "auxiliary_head": False,
            "terms": False,
        }
    # Optax has two names for the mask.
    mask = {
        "backbone": {"kernel": True, "bias": False},
        **{"head": False, "auxiliary_head": True, "terms": True},
    }
    rate = learning_rate_schedule(optimizer_settings({}), STEPS)
    exactly(optimize({"name": "optax:lars"} | decaying), apply(optax.lars(rate, 0.5, mask)))
    # Every matching pattern multiplies the rate, and so does that of the heads.
    rates = {"rates": (("backbone/", 0), ("head$", 2.0), ("^head", 4.0)), "head_multiplier": 10.0}
    moved = jax.tree.map(lambda leaf: float((1 - leaf).max()) / 0.1, optimize(rates, 1))
    assert moved == {
        "backbone": {"kernel": 0, "bias": 0},
        "head": pytest.approx(80.0),
        "auxiliary_head": pytest.approx(20.0),
        "terms": pytest.approx(10.0),
    }


def test_patterns_that_are_found_nowhere():
    optimizer = make_optimizer(optimizer_settings({"no_decay": ("bias$", "nrom")}), STEPS)
    net = create("pspnet_r18", num_classes=3, width=4, rngs=nnx.Rngs(0))
    found = (
        r'no_decay has "nrom", .* of the \d+ parameters, as student/auxiliary_head/\S+/bias, stu'
    )
    with pytest.raises(UserError, match=found):
        optimizer.init({"student": NNXNetwork.of(net)[1]["params"]})
    with pytest.raises(
        UserError, match=r"optimizer\.rates has .* as auxiliary_head, backbone/bias, b"
    ):
        optimize({"rates": (("stage1", 2.0),)})
    with pytest.raises(UserError, match=r"optimizer\.head_multiplier has .*, which is found in no"):
        make_optimizer(optimizer_settings({"head_multiplier": 2.0}), STEPS).init({"w": jnp.ones(2)})


def test_adamw_decay_is_decoupled():
    params = optimize({"name": "adamw", "weight_decay": 0.5}, 1)
    assert float(params["head"][0]) == pytest.approx(1 - 0.1 * (1.0 + 0.5), rel=1e-5)


def test_warm_up():
    settings = OptimizerOptions(learning_rate=0.1, warmup_steps=4)
    rate = learning_rate_schedule(settings, STEPS)
    assert [float(rate(s)) for s in (0, 2)] == pytest.approx([0.0, 0.05 * 0.8**0.9])
