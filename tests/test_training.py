"""The step, the optimizer, the loop and the checkpoints."""

import json
import os
import pathlib
import re
import resource
import shutil
import signal
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from kdjax import config as configuration
from kdjax import models
from kdjax.distillation import terms as distillation_terms
from kdjax.distillation.objective import Objective
from kdjax.errors import Preempted, UserError
from kdjax.models.preprocessing import IMAGENET
from kdjax.training.checkpoints import Checkpoints
from kdjax.training.checksum import checksum
from kdjax.training.clock import Clock
from kdjax.training.cost import step_cost
from kdjax.training.interruption import Interruption
from kdjax.training.loop import Diverged, fit
from kdjax.training.optimizer import learning_rate_schedule, make_optimizer
from kdjax.training.sharding import Placement
from kdjax.training.state import create_state
from kdjax.training.step import Side, make_train_step

STEPS = 10
RNG = np.random.default_rng(0)


def make_batch(size=8):
    return {
        "image": RNG.integers(0, 256, (size, 16, 16, 3), np.uint8),
        "label": RNG.choice([0, 1, 2, 255], (size, 16, 16)).astype(np.uint8),
    }


def setup(*, accumulate=1, ema_decay=0.0, dropout=0.1, **changes):
    """A taught student with an adapter, all as small as it gets."""
    config = configuration.default()
    config.optimizer.update(changes)
    student = models.create("tiny", num_classes=3, width=4, rngs=nnx.Rngs(0))
    teacher = models.create("tiny", num_classes=3, width=8, rngs=nnx.Rngs(1))
    for head in (student.head, student.auxiliary_head):
        head.classifier.dropout.rate = dropout
    terms = distillation_terms.resolve(
        {
            "logits_cwd": configuration.term("cwd"),
            "head_cwd": configuration.term("cwd", student="head", teacher="head"),
            "augmented": configuration.term("fakd_kl"),
        },
        student.feature_specs,
        teacher.feature_specs,
    )
    adapters = distillation_terms.init_adapters(terms, jax.random.key(0))
    optimizer = make_optimizer(config.optimizer, STEPS)
    statistics = distillation_terms.init_statistics(terms, classes=3)
    graphdef, state = create_state(student, adapters, statistics, optimizer, ema=ema_decay > 0)
    teacher_graphdef, teacher_state = nnx.split(teacher)
    step = make_train_step(
        Side(graphdef, IMAGENET),
        Side(teacher_graphdef, IMAGENET),
        Objective(1.0, 0.4, terms),
        optimizer,
        learning_rate_schedule(config.optimizer, STEPS),
        steps=STEPS,
        accumulate=accumulate,
        ema_decay=ema_decay,
    )
    return step, state, teacher_state


def assert_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@pytest.fixture(scope="module")
def one_step():
    step, state, teacher = setup()
    before = jax.device_get(teacher)
    after, metrics = jax.jit(step)(state, teacher, make_batch())
    return types.SimpleNamespace(
        state=state, after=after, metrics=metrics, teacher=teacher, teacher_before=before
    )


def test_a_step_trains_student_and_adapters_and_logs_every_term(one_step):
    moved = jax.tree.map(
        lambda a, b: bool(jnp.any(a != b)), one_step.state.params, one_step.after.params
    )
    assert jax.tree.all(moved)
    # Batch norm's running statistics and the class statistics go with the step as well.
    for before, after in (
        (one_step.state.model_state, one_step.after.model_state),
        (one_step.state.statistics, one_step.after.statistics),
    ):
        unequal = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), before, after)
        assert any(jax.tree.leaves(unequal))
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
    # Images without labels: the terms that read none go on as before.
    unlabelled = batch | {"clean": batch["image"], "label": np.full_like(batch["label"], 255)}
    after, metrics = step(state, teacher, unlabelled)
    for part in ("cross_entropy", "auxiliary_cross_entropy", "augmented"):
        assert metrics[part] == 0
    assert metrics["logits_cwd"] == same["logits_cwd"] > 0
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(after.params))


def test_eight_devices_compute_what_one_does():
    step, state, teacher = setup()
    batch = make_batch()
    placement = Placement()
    assert placement.mesh.size == 8
    single, metrics = jax.jit(step)(state, teacher, batch)
    sharded, sharded_metrics = jax.jit(step)(
        *jax.device_put((state, teacher), placement.replicated), placement.put_batch(batch)
    )
    assert_close(metrics, sharded_metrics, rtol=1e-4, atol=1e-6)
    # Batch norm's sums are taken in another order; momentum and weights follow the gradients.
    assert_close(single.params, sharded.params, rtol=1e-3, atol=2e-6)
    assert_close(single.model_state, sharded.model_state, rtol=1e-4, atol=1e-6)
    # Class statistics are those of all devices' pixels, not of one's.
    assert float(single.statistics["logits_diagonal"].count.sum()) > 8
    assert_close(single.statistics, sharded.statistics, rtol=1e-4, atol=1e-6)


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
    seen, twice = (state.statistics["logits_diagonal"].count for state in (whole, parts))
    np.testing.assert_array_equal(twice, 2 * seen)
    assert any(
        not np.allclose(a, b)
        for a, b in zip(*map(jax.tree.leaves, (whole.model_state, parts.model_state)), strict=True)
    )


def test_every_micro_batch_and_step_draws_its_own_dropout():
    half = make_batch(4)
    batch = {key: np.repeat(value, 2, axis=0) for key, value in half.items()}
    step, state, teacher = setup(dropout=0.9)
    accumulate, *_ = setup(dropout=0.9, accumulate=2)

    one = jax.jit(step)
    first, later = (one(state.replace(step=jnp.array(done)), teacher, half)[1] for done in (0, 1))
    assert float(first["cross_entropy"]) != float(later["cross_entropy"])
    both = jax.jit(accumulate)(state, teacher, batch)[1]
    # Were the same units dropped in both micro-batches, this would be the first.
    assert float(both["gradient_norm"]) != pytest.approx(float(first["gradient_norm"]), rel=1e-3)


def test_the_augmentation_grows_with_the_share_of_steps_done():
    step, state, teacher = setup(dropout=0.0)
    batch = make_batch()
    done = [state.replace(step=jnp.array(steps)) for steps in (0, STEPS // 2, STEPS)]
    start, half, end = (jax.jit(step)(s, teacher, batch)[1]["augmented"] for s in done)
    assert float(start) < float(half) < float(end)


def test_moving_average_of_the_weights():
    step, state, teacher = setup(ema_decay=0.75)
    after, _ = jax.jit(step)(state, teacher, make_batch())
    start, new = state.params["student"], after.params["student"]
    expected = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, start, new)
    assert_close(after.ema[0], expected, rtol=1e-6, atol=1e-7)
    running = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, state.model_state, after.model_state)
    assert_close(after.ema[1], running, rtol=1e-6, atol=1e-7)
    averaged = nnx.to_pure_dict(nnx.filter_state(after.student(), nnx.Param))
    jax.tree.map(np.testing.assert_array_equal, averaged, nnx.to_pure_dict(after.ema[0]))


def optimize(changes, steps=3):
    settings = configuration.default().optimizer
    settings.update({"learning_rate": 0.1, "momentum": 0.0, "weight_decay": 0.0} | changes)
    optimizer = make_optimizer(settings, STEPS)
    params = {
        "backbone": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
        **{name: jnp.ones(2) for name in ("head", "auxiliary_head", "adapters")},
    }
    state = optimizer.init(params)
    for _ in range(steps):
        gradients = jax.tree.map(jnp.ones_like, params)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return params


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
    for name in ("head", "auxiliary_head", "adapters"):
        np.testing.assert_allclose(1 - faster[name], 10 * (1 - plain[name]), rtol=1e-5)
    np.testing.assert_array_equal(faster["backbone"]["kernel"], plain["backbone"]["kernel"])
    masked = optimize({"weight_decay": 0.5, "decay_norm_and_bias": False}, 1)
    assert float(masked["backbone"]["kernel"][0, 0]) == pytest.approx(1 - 0.1 * 1.5)
    assert float(masked["backbone"]["bias"][0]) == pytest.approx(1 - 0.1)
    clipped = optimize({"gradient_clip": 1.0}, 1)
    moved = jax.tree.map(lambda leaf: 1 - leaf, clipped)
    assert float(optax.tree.norm(moved)) == pytest.approx(0.1, rel=1e-5)


def test_adamw_decay_is_decoupled():
    params = optimize({"name": "adamw", "weight_decay": 0.5}, 1)
    assert float(params["head"][0]) == pytest.approx(1 - 0.1 * (1.0 + 0.5), rel=1e-5)


def test_warm_up():
    settings = configuration.default().optimizer
    settings.update({"learning_rate": 0.1, "warmup_steps": 4})
    rate = learning_rate_schedule(settings, STEPS)
    assert [float(rate(s)) for s in (0, 2)] == pytest.approx([0.0, 0.05 * 0.8**0.9])


class Recorder:
    """Takes what the loop logs."""

    def __init__(self):
        self.lines = []

    def scalars(self, step, values):
        self.lines.append((step, dict(values)))


def run_loop(
    directory,
    *,
    first_step=None,
    steps=4,
    poison=-1,
    checkpoint_every=0,
    profile=None,
    before_batch=lambda step: None,
    before_evaluation=lambda step: None,
):
    plain, fresh, teacher = setup()
    placement = Placement()
    checkpoints = Checkpoints(directory, {"teacher": "abc"})
    interruption = Interruption()
    state = placement.put_state(fresh)
    if first_step is None:
        first_step, state, remarks = checkpoints.restore_latest(state)
    else:
        state, remarks = checkpoints.restore(first_step, state), []

    def step(state, teacher, batch):
        state, metrics = plain(state, teacher, batch)
        metrics["head_cwd"] = jnp.where(state.step == poison, jnp.nan, metrics["head_cwd"])
        return state, metrics

    generator = np.random.default_rng(7)
    all_batches = [
        {
            "image": generator.integers(0, 256, (8, 16, 16, 3), np.uint8),
            "label": generator.integers(0, 3, (8, 16, 16), np.uint8),
        }
        for _ in range(steps)
    ]

    def batches():
        for number, batch in enumerate(all_batches[first_step:], start=first_step + 1):
            before_batch(number)
            yield placement.put_batch(batch)

    def evaluate(step, state):
        list(interruption.stop_between([before_evaluation(step), None]))
        return {2: 0.9, 4: 0.5, 6: 0.7}.get(step, 0.1)

    log = Recorder()
    log.remarks = remarks
    try:
        with interruption:
            state = fit(
                state,
                placement.put_state(teacher),
                step,
                batches(),
                batch_size=8,
                first_step=first_step,
                steps=steps,
                log_every=2,
                eval_every=2,
                checkpoint_every=checkpoint_every,
                placement=placement,
                log=log,
                evaluate=evaluate,
                checkpoints=checkpoints,
                interruption=interruption,
                profile=profile,
            )
    finally:
        checkpoints.close()
    return jax.device_get(state), log


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    state, log = run_loop(directory, steps=6)
    return directory, state, log


def test_the_loop_logs_means_and_keeps_the_latest_and_the_best(finished):
    directory, _, log = finished
    assert [step for step, _ in log.lines] == [2, 4, 6]
    assert log.lines[0][1]["train/images_per_second"] > 0
    assert 0 < log.lines[0][1]["train/input_wait"] < 1
    assert log.lines[0][1]["train/step_seconds"] > 0
    # Nothing is saved before the first line.
    assert (
        log.lines[0][1]["train/checkpoint_seconds"]
        == 0
        < log.lines[1][1]["train/checkpoint_seconds"]
    )
    # The cost of the compiled step is said once.
    assert ["train/step_flops" in values for _, values in log.lines] == [True, False, False]
    checkpoints = Checkpoints(directory, {"teacher": "abc"})
    assert (checkpoints.latest_step, checkpoints.best_step) == (6, 2)
    assert sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit()) == [2, 4, 6]


def test_the_cost_of_a_step_is_known_before_it_runs_and_compiles_it_once(caplog):
    def step(state, factors):
        return state @ factors, jnp.sum(state)

    step_fn = jax.jit(step, donate_argnums=0)
    state, factors = jnp.zeros((64, 32)), jnp.zeros((32, 32))
    cost = step_cost(step_fn, state, factors)
    with jax.log_compiles(), caplog.at_level("WARNING", logger="jax"):
        step_fn(state, factors)
    assert "compil" not in caplog.text.lower()
    assert cost["train/step_flops"] == 2 * 64 * 32 * 32
    # Both arguments and the sum; the new state takes the old one's place.
    arrays = 4 * (64 * 32 + 32 * 32 + 1)
    assert arrays <= cost["train/step_bytes"] < arrays + 2 * 4 * 64 * 32


def test_a_continued_run_equals_an_uninterrupted_one_bit_for_bit(finished):
    directory, whole, _ = finished
    continued, _ = run_loop(directory, first_step=2, steps=6)
    jax.tree.map(np.testing.assert_array_equal, whole, continued)


def test_a_diverged_run_names_step_and_term_and_keeps_its_checkpoint(tmp_path):
    message = "head_cwd is nan at step 3; the checkpoint of step 2 is kept"
    with pytest.raises(Diverged, match=message):
        run_loop(tmp_path, poison=3)
    assert Checkpoints(tmp_path, {"teacher": "abc"}).latest_step == 2


def test_another_teacher_is_refused(finished):
    directory, _, _ = finished
    with pytest.raises(UserError, match=r"made with teacher 'abc' \(now 'xyz'\)"):
        Checkpoints(directory, {"teacher": "xyz"}).restore(6, setup()[1])


def ask_at(step, number):
    """Sends this process a signal when `step` comes."""

    def ask(at):
        if at == step:
            os.kill(os.getpid(), number)

    return ask


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_stop_saves_and_continues(finished, tmp_path, number):
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    # The signal comes before the batch of step 3 is there; that step is still done.
    with pytest.raises(Preempted, match="the checkpoint of step 3 is saved"):
        run_loop(tmp_path, steps=6, before_batch=ask_at(3, number))
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    continued, log = run_loop(tmp_path, steps=6)
    assert log.lines[0][0] == 4
    jax.tree.map(np.testing.assert_array_equal, finished[1], continued)


def test_a_run_that_is_stopped_in_an_evaluation_makes_it_first(finished, tmp_path):
    with pytest.raises(Preempted, match="the checkpoint of step 2 is saved"):
        run_loop(tmp_path, steps=6, before_evaluation=ask_at(2, signal.SIGTERM))
    assert Checkpoints(tmp_path, {"teacher": "abc"}).best_step is None
    evaluated = []
    continued, _ = run_loop(tmp_path, steps=6, before_evaluation=evaluated.append)
    assert evaluated == [2, 4, 6]
    assert Checkpoints(tmp_path, {"teacher": "abc"}).best_step == 2
    jax.tree.map(np.testing.assert_array_equal, finished[1], continued)


def test_checkpoints_between_evaluations_bound_what_a_kill_costs(tmp_path):
    def die(step):
        if step == 2:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        run_loop(tmp_path, checkpoint_every=1, before_evaluation=die)
    checkpoints = Checkpoints(tmp_path, {"teacher": "abc"})
    assert (checkpoints.latest_step, checkpoints.best_step) == (1, None)


# After a file that cannot be read or written, TensorStore's answers about the others may come when
# Orbax has closed the event loop that they are for.
late_answers = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def array_files(directory):
    """The files that hold the arrays of a checkpoint."""
    return [p for p in directory.rglob("d/*") if p.is_file() and p.stat().st_size > 1000]


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@late_answers
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(finished, tmp_path):
    directory, whole, _ = finished
    for damage in (cut_short, flip_a_bit, pathlib.Path.unlink):
        copy = tmp_path / damage.__name__
        shutil.copytree(directory, copy)
        for path in array_files(copy / "6"):
            damage(path)
        continued, log = run_loop(copy, steps=6)
        (remark,) = log.remarks
        assert re.search(r"6: this checkpoint is damaged \(.*\)", remark)
        assert [step for step, _ in log.lines] == [6]
        assert (copy / "damaged-6").is_dir()
        jax.tree.map(np.testing.assert_array_equal, whole, continued)


@late_answers
def test_no_checkpoint_is_whole(tmp_path):
    run_loop(tmp_path, steps=2)
    for path in array_files(tmp_path / "2"):
        cut_short(path)
    with pytest.raises(UserError, match=r"2: this checkpoint is damaged .*; no other is left"):
        run_loop(tmp_path, steps=4)


@late_answers
def test_a_disk_that_fills_up_keeps_the_checkpoint_before(tmp_path):
    """Files may not grow beyond a size: writing fails as on a full disk."""
    run_loop(tmp_path, steps=2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
        with pytest.raises(UserError, match=r"cannot write .*; the checkpoint of step 2 is kept"):
            run_loop(tmp_path, steps=4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    _, log = run_loop(tmp_path, steps=4)
    assert (log.remarks, log.lines[-1][0]) == ([], 4)
    assert not list(tmp_path.glob("*tmp*"))


def test_a_clock_that_jumps_changes_nothing(finished, tmp_path, monkeypatch):
    """The time of day goes back by a day before every second batch, and forward again after it."""
    day, real = [0.0], time.time
    monkeypatch.setattr(time, "time", lambda: real() + day[0])

    def jump(step):
        day[0] = -86400.0 * (step % 2)

    run_loop(tmp_path, steps=3, before_batch=jump)
    continued, log = run_loop(tmp_path, steps=6, before_batch=jump)
    jax.tree.map(np.testing.assert_array_equal, finished[1], continued)
    assert Checkpoints(tmp_path, {"teacher": "abc"}).latest_step == 6
    for _, values in log.lines:
        assert 0 < values["train/step_seconds"] < 3600


def test_what_the_time_of_a_step_goes_into(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = Clock(batch_size=8)
    for _ in range(2):
        with clock.waiting():
            now[0] += 0.5
        now[0] += 1.5
        clock.steps += 1
    with clock.saving():
        now[0] += 10
    with clock.paused():
        now[0] += 100
    assert clock.read() == {
        "train/images_per_second": 4.0,
        "train/step_seconds": 2.0,
        "train/input_wait": 0.25,
        "train/checkpoint_seconds": 10.0,
    }


def test_a_checksum_knows_arrays_and_not_their_places():
    state = setup()[1]
    expected = checksum(state)
    for sizes in ({"data": 8}, {"data": 1, "fsdp": 8}):
        assert checksum(Placement(sizes).put_state(state)) == expected
    leaves, structure = jax.tree.flatten(state)
    for index, leaf in enumerate(leaves):
        other = [*leaves]
        other[index] = (leaf.view(jnp.uint32) ^ 1).view(leaf.dtype)
        assert checksum(jax.tree.unflatten(structure, other)) != expected
    assert checksum({"a": jnp.array([1.0, 2.0])}) != checksum({"a": jnp.array([2.0, 1.0])})


def test_a_batch_must_split_over_the_devices():
    with pytest.raises(UserError, match=r"config.data.batch_size is 12; .* the 8 devices"):
        Placement().check_batch_size("data.batch_size", 12)


def test_configs_are_stored_as_they_are():
    config = configuration.default()
    again = configuration.from_json(configuration.to_json(config))
    assert json.loads(again.to_json()) == json.loads(config.to_json())
    assert again.data.crop_size == config.data.crop_size
