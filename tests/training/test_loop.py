"""The loop, its checkpoints, and what stops it."""

import asyncio
import functools
import os
import re
import shutil
import signal
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import thorough
from small_step import setup

from kdjax.training.checkpoints import Checkpoints
from kdjax.training.checksum import checksum
from kdjax.training.loop import Diverged, Hooks, Interruption, Intervals, fit, jit_step
from kdjax.training.profiling import Clock, logged_seconds, step_cost
from kdjax.training.sharding import MeshOptions, Placement
from kdjax.training.step import TrainState
from kdjax.utils import environment
from kdjax.utils.errors import Preempted, Transient, UserError


@functools.cache
def poisoned_step(poison):
    """The step, whose term is not finite at one of them; one function, which is compiled once."""
    plain, *_ = setup()

    def step(state, teacher, batch):
        state, metrics = plain(state, teacher, batch)
        metrics["head_cwd"] = jnp.where(state.step == poison, jnp.nan, metrics["head_cwd"])
        return state, metrics

    return step


class Recorder:
    """Takes what the loop logs."""

    def __init__(self):
        self.lines = []

    def scalars(self, step, values):
        self.lines.append((step, dict(values)))

    def median(self, key):
        return statistics.median(values[key] for _, values in self.lines)


def run_loop(  # noqa: PLR0913
    directory,
    *,
    first_step=None,
    steps=4,
    poison=-1,
    checkpoint_every=0,
    profile=None,
    earlier=(),
    before_batch=lambda step: None,
    before_evaluation=lambda step: None,
):
    _, fresh, teacher = setup()
    placement = Placement()
    checkpoints = Checkpoints(directory, {"teacher": "abc"})
    interruption = Interruption()
    state = placement.put_state(fresh)
    if first_step is None:
        first_step, state, remarks = checkpoints.restore_latest(state)
    else:
        state, remarks = checkpoints.restore(first_step, state), []

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
            fitted = fit(
                state,
                placement.put_state(teacher),
                jit_step(poisoned_step(poison), state, placement),
                batches(),
                Intervals(steps, 2, 2, checkpoint_every, batch_size=8),
                Hooks(log, evaluate, checkpoints, interruption, profile),
                first_step=first_step,
                earlier=earlier,
            )
    finally:
        checkpoints.close()
    log.fitted = fitted
    return jax.device_get(fitted.state), log


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
    assert log.fitted.step_seconds == log.median("train/step_seconds")
    assert log.fitted.step_processor_seconds == log.median("train/step_processor_seconds")
    assert log.fitted.images_per_second == log.median("train/images_per_second")
    assert log.fitted.step_flops == log.lines[0][1]["train/step_flops"]
    assert log.fitted.step_bytes == log.lines[0][1]["train/step_bytes"]
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


def test_the_figures_of_a_continued_run_are_those_of_all_its_starts(finished):
    directory, _, _ = finished
    slow = {"train/step_seconds": 1e9, "train/images_per_second": None, "train/step_flops": 1.0}
    _, log = run_loop(directory, first_step=4, steps=6, earlier=[slow, {"val/miou": 0.5}])
    (step, values), found = log.lines[0], log.fitted
    assert (step, found.step_seconds) == (6, (1e9 + values["train/step_seconds"]) / 2)
    assert found.images_per_second == values["train/images_per_second"]
    assert found.step_flops == values["train/step_flops"]
    # Killed after its last step, and with nothing left to do.
    _, log = run_loop(directory, first_step=6, steps=6, earlier=[slow])
    assert log.fitted[1:] == (1e9, None, None, 1.0, None)


def test_a_state_of_any_types_is_saved_and_checked(tmp_path):
    """As of an optimizer whose moments are in bfloat16, or that draws noise."""
    optimizer = optax.chain(
        optax.scale_by_adam(mu_dtype=jnp.bfloat16), optax.add_noise(0.1, 0.5, key=jax.random.key(3))
    )
    params = {"student": {"kernel": jnp.arange(6.0).reshape(2, 3)}, "terms": {}}
    values = {
        "key": jax.random.key(5),
        "keys": jax.random.split(jax.random.key(6), 3),
        "half": jnp.array([1.5, -2.0], jnp.float16),
        "small": jnp.array([-1, 7], jnp.int8),
        "mask": jnp.array([True, False]),
        "wave": jnp.array([1 + 2j]),
    }
    state = TrainState(
        step=jnp.array(1),
        seed=jnp.array(0),
        params=params,
        model_state=values,
        opt_state=optimizer.init(params),
        terms={},
        ema=None,
    )
    state = Placement().put_state(state)
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save(1, state)
    found = checkpoints.restore(1, state)
    checkpoints.close()
    assert checksum(found) == checksum(state)
    draw = [jax.random.normal(each.model_state["key"]) for each in (found, state)]
    assert draw[0] == draw[1]
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(found), strict=True):
        assert (old.dtype, old.sharding) == (new.dtype, new.sharding)
        if not jnp.issubdtype(old.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(old, new)
    others = {
        "key": jax.random.key(4),
        "keys": values["keys"][::-1],
        "half": values["half"].at[0].set(1.25),
        "small": values["small"].at[0].set(1),
        "mask": ~values["mask"],
        "wave": jnp.array([2 + 1j]),
    }
    assert others.keys() == values.keys()
    for name, other in others.items():
        assert checksum(values | {name: other}) != checksum(values)


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


@pytest.mark.parametrize("number", thorough.after(1, [signal.SIGTERM, signal.SIGINT]))
def test_a_run_that_is_asked_to_stop_saves_and_continues(finished, tmp_path, number):
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    # The signal comes before the batch of step 3 is there; that step is still done.
    with pytest.raises(Preempted, match="the checkpoint of step 3 is saved"):
        run_loop(tmp_path, steps=6, before_batch=ask_at(3, number))
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    continued, log = run_loop(tmp_path, steps=6)
    assert log.lines[0][0] == 4
    jax.tree.map(np.testing.assert_array_equal, finished[1], continued)


@pytest.mark.thorough
def test_a_thread_trains_without_handling_signals(finished, tmp_path):
    """Nor does a loop of asyncio that runs, as in a notebook, stand in the way."""
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]

    async def train():
        return run_loop(tmp_path, steps=6)

    with ThreadPoolExecutor(1) as pool:
        state, _ = pool.submit(asyncio.run, train()).result()
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    jax.tree.map(np.testing.assert_array_equal, finished[1], state)


def test_a_run_that_is_stopped_in_an_evaluation_makes_it_first(finished, tmp_path):
    with pytest.raises(Preempted, match="the checkpoint of step 2 is saved"):
        run_loop(tmp_path, steps=6, before_evaluation=ask_at(2, signal.SIGTERM))
    assert Checkpoints(tmp_path, {"teacher": "abc"}).best_step is None
    evaluated = []
    continued, _ = run_loop(tmp_path, steps=6, before_evaluation=evaluated.append)
    assert evaluated == [2, 4, 6]
    assert Checkpoints(tmp_path, {"teacher": "abc"}).best_step == 2
    jax.tree.map(np.testing.assert_array_equal, finished[1], continued)


@pytest.mark.parametrize("content", thorough.after(1, ["", "[]", '{"miou": null}']))
def test_a_score_that_is_damaged_is_made_again(finished, tmp_path, content):
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run" / "6" / "metrics" / "metrics").write_text(content)
    evaluated = []
    continued, log = run_loop(tmp_path / "run", steps=6, before_evaluation=evaluated.append)
    (remark,) = log.remarks
    assert remark == f"{tmp_path}/run/6: the score of this checkpoint is damaged"
    assert evaluated == [6]
    jax.tree.map(np.testing.assert_array_equal, finished[1], continued)
    assert Checkpoints(tmp_path / "run", {"teacher": "abc"}).best_step == 2
    # Not of the latest one.
    (tmp_path / "run" / "2" / "metrics" / "metrics").write_text(content)
    assert Checkpoints(tmp_path / "run", {"teacher": "abc"}).best_step == 6


def test_checkpoints_between_evaluations_bound_what_a_kill_costs(tmp_path, caplog):
    def die(step):
        if step == 2:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        run_loop(tmp_path, checkpoint_every=1, before_evaluation=die)
    checkpoints = Checkpoints(tmp_path, {"teacher": "abc"})
    assert (checkpoints.latest_step, checkpoints.best_step) == (1, None)
    assert "metrics" not in caplog.text


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
    for _, values in log.lines[1:]:
        assert 0 < values["train/step_seconds"] < 3600


@pytest.mark.parametrize(
    "error",
    [
        # Of Orbax, when the clock jumps forward by an hour in the midst of a save.
        TimeoutError("Timed out after 3600.1 seconds."),
        ValueError("UNKNOWN: Gloo AllGather failed: Connection reset by peer [127.0.1.1]:2"),
        ValueError('UNAVAILABLE: Error writing "gs://bucket/run": HTTP response code: 503'),
    ],
)
def test_what_may_be_gone_at_the_next_try_is_no_mistake_and_no_damage(finished, monkeypatch, error):
    def fail(*arguments, **options):
        raise error

    state = setup()[1]
    checkpoints = Checkpoints(finished[0], {"teacher": "abc"})
    monkeypatch.setattr(checkpoints._manager, "save", fail)
    with pytest.raises(Transient, match=r"cannot write .*; the checkpoint of step 6 is kept"):
        checkpoints.save(7, state)
    monkeypatch.setattr("kdjax.training.checkpoints.local_checkpointer", fail)
    with pytest.raises(Transient, match=r"cannot read .*/6: "):
        checkpoints.restore_latest(state)
    assert checkpoints.latest_step == 6


def test_what_the_time_of_a_step_goes_into(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    # Three threads at work all the time.
    monkeypatch.setattr(time, "process_time", lambda: 3 * now[0])
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
        "train/step_processor_seconds": 6.0,
        "train/input_wait": 0.25,
        "train/checkpoint_seconds": 10.0,
    }


def test_the_first_step_of_a_start_is_in_no_time(tmp_path):
    def slow(step):
        if step == 1:
            end = time.process_time() + 0.5
            while time.process_time() < end:
                pass

    _, log = run_loop(tmp_path / "whole", before_batch=slow)
    assert log.lines[0][1]["train/step_processor_seconds"] < 0.2
    # A line on that step alone has no times.
    _, log = run_loop(tmp_path / "short", steps=1)
    assert "train/step_seconds" not in log.lines[0][1]
    assert log.fitted.step_seconds is None


def test_the_seconds_of_all_starts_are_read_from_the_log():
    lines = [
        {"step": 2, "train/loss": 1.0, "train/checkpoint_seconds": 0.0},
        {"step": 4, "train/step_seconds": 0.5, "train/checkpoint_seconds": 3.0},
        {"step": 4, "val/seconds": 10.0},
        {"step": 6, "train/step_seconds": 1.0, "train/checkpoint_seconds": None},
    ]
    assert logged_seconds(lines) == 4 * 0.5 + 3 + 10 + 2 * 1.0
    assert logged_seconds([]) == 0


def test_a_checksum_knows_arrays_and_not_their_places():
    state = setup()[1]
    expected = checksum(state)
    for sizes in (MeshOptions(), MeshOptions(data=1, fsdp=8)):
        assert checksum(Placement(sizes).put_state(state)) == expected
    leaves, structure = jax.tree.flatten(state)
    for index, leaf in enumerate(leaves):
        other = [*leaves]
        other[index] = (leaf.view(jnp.uint32) ^ 1).view(leaf.dtype)
        assert checksum(jax.tree.unflatten(structure, other)) != expected
    assert checksum({"a": jnp.array([1.0, 2.0])}) != checksum({"a": jnp.array([2.0, 1.0])})
    one, other = jnp.ones(2), jnp.zeros(2)
    assert checksum({"a": one, "b": other}) != checksum({"a": other, "b": one})


def test_on_a_cpu_a_residual_sum_is_computed_once():
    """By default XLA computes it from the first block on in every block: operands in numbers."""

    def blocks(x, kernels):
        for kernel in kernels:
            x = jax.nn.relu(x + x @ kernel)
        return x

    jitted = jax.jit(blocks, compiler_options=environment.compiler_options("cpu"))
    shapes = (
        jax.ShapeDtypeStruct((64, 8), jnp.float32),
        jax.ShapeDtypeStruct((10, 8, 8), jnp.float32),
    )
    program = jitted.lower(*shapes).compile().as_text()
    fusions = re.findall(r" fusion\((.*?)\), kind", program)
    assert fusions
    assert max(operands.count(",") + 1 for operands in fusions) <= 3
    assert environment.compiler_options("tpu") == environment.compiler_options("gpu") == {}
