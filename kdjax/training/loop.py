"""The training loop: step, log, evaluate, save, in that order."""

import collections
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from kdjax.errors import UserError
from kdjax.training.checkpoints import Checkpoints
from kdjax.training.profiling import Profile
from kdjax.training.sharding import Placement
from kdjax.training.state import TrainState
from kdjax.training.step import Batch, Metrics, TrainStep

# Steps that may be under way on the device before the host looks at their metrics.
IN_FLIGHT = 2


class Diverged(UserError):
    """The loss is no longer a number."""


class Log(Protocol):
    """Takes the numbers of a step by name."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...  # noqa: D102


def fit(
    state: TrainState,
    teacher_state: Any,
    train_step: TrainStep,
    batches: Iterator[Batch],
    *,
    batch_size: int,
    first_step: int,
    steps: int,
    log_every: int,
    eval_every: int,
    placement: Placement,
    log: Log,
    evaluate: Callable[[int, TrainState], float],
    checkpoints: Checkpoints,
    profile: Profile | None = None,
) -> TrainState:
    """Trains from `first_step` to `steps` and returns the last state.

    Every `eval_every` steps and at the end, the state is evaluated first and then saved with its
    mIoU, so that a run that continues never repeats an evaluation.

    Args:
      state: the state after `first_step` steps; its buffers are given up.
      teacher_state: the frozen teacher, or None.
      train_step: as `kdjax.training.step.make_train_step` returns it.
      batches: those of the steps from `first_step` on, on the devices.
      batch_size: images in a batch of all processes together, for the rate.
      first_step: steps that were done before.
      steps: steps in all.
      log_every: steps between two log lines, each the mean over the steps since the last.
      eval_every: steps between two evaluations.
      placement: where arrays live.
      log: takes `train/...` values; `input_wait` is the share of the time that the host waited for
        a batch.
      evaluate: called with the step and the state; returns the mIoU.
      checkpoints: where the state is saved.
      profile: traces some of the steps.

    Raises:
      Diverged: at the first step with a metric that is not finite, naming step and metric.
    """
    step_fn = jax.jit(
        train_step,
        donate_argnums=0,
        out_shardings=(placement.replicated, placement.replicated),
    )
    pending: collections.deque[tuple[int, Metrics]] = collections.deque()
    window: list[dict[str, float]] = []

    def settle(limit: int) -> None:
        while len(pending) > limit:
            step, metrics = pending.popleft()
            window.append(_finite(step, metrics, checkpoints))

    images, waited, since = 0, 0.0, time.perf_counter()
    for step in range(first_step + 1, steps + 1):
        if profile:
            profile.begin(step)
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        images += batch_size
        state, metrics = step_fn(state, teacher_state, batch)
        pending.append((step, metrics))
        if profile:
            profile.end(step, metrics)
        settle(IN_FLIGHT)
        if step % log_every == 0 or step == steps:
            settle(0)
            means = {f"train/{key}": float(np.mean([m[key] for m in window])) for key in metrics}
            passed = time.perf_counter() - since
            speed = {
                "train/images_per_second": images / passed,
                "train/input_wait": waited / passed,
            }
            log.scalars(step, means | speed)
            window.clear()
            images, waited, since = 0, 0.0, time.perf_counter()
        if step % eval_every == 0 or step == steps:
            settle(0)
            started = time.perf_counter()
            miou = evaluate(step, state)
            checkpoints.save(step, state, miou)
            since += time.perf_counter() - started
    return state


def _finite(step: int, metrics: Metrics, checkpoints: Checkpoints) -> dict[str, float]:
    values = {key: float(value) for key, value in metrics.items()}
    # The parts before their sum, so that the message names the part.
    for key in sorted(values, key=lambda key: key == "loss"):
        if not math.isfinite(values[key]):
            kept = checkpoints.latest_step
            saved = f"the checkpoint of step {kept} is kept" if kept else "no checkpoint was made"
            raise Diverged(
                f"the run diverged: {key} is {values[key]} at step {step}; {saved}. Lower "
                "config.optimizer.learning_rate or set config.optimizer.gradient_clip"
            )
    return values
