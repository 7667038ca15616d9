"""The training loop: step, log, evaluate, save, in that order, until asked to stop."""

import collections
import math
import signal
import statistics
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import FrameType, TracebackType
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from kdjax.models import Variables
from kdjax.training.checkpoints import Checkpoints
from kdjax.training.profiling import Clock, Profile, step_cost
from kdjax.training.sharding import Placement
from kdjax.training.step import Batch, Metrics, TrainState, TrainStep
from kdjax.utils.environment import compiler_options
from kdjax.utils.errors import Preempted, UserError

Item = TypeVar("Item")

# Several processes read what they agreed on this many points later, so that asking waits for
# nothing: by then the devices have long answered.
DELAY = 2


class Interruption:
    """Inside this context, SIGTERM and SIGINT ask the run to stop instead of ending the process.

    A second SIGINT interrupts at once. Among several processes, one that is asked stops all. In
    other threads than the main one, where Python handles no signals, they are left as they are.
    """

    def __init__(self) -> None:
        self._asked = False
        self._earlier: dict[int, Any] = {}
        self._hearer = -1
        self._answers: collections.deque[jax.Array] = collections.deque()
        self._alone = not jax.distributed.is_initialized()
        # Which takes the devices, that a process may leave to its children.
        if self._alone:
            return
        mesh = Mesh(np.array(jax.devices()), ("all",), (AxisType.Auto,))
        self._flags = NamedSharding(mesh, PartitionSpec("all"))
        self._any = jax.jit(
            lambda flags: flags.any(), out_shardings=NamedSharding(mesh, PartitionSpec())
        )

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is not threading.main_thread():
            return self
        # Whoever hears of signals in a thread of its own would end the process.
        self._hearer = signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._earlier[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        if self._earlier:
            signal.set_wakeup_fd(self._hearer)

    def reached(self) -> bool:
        """Whether to save and stop here; every process must ask at the same points."""
        if self._alone:
            return self._asked
        mine = np.full(jax.local_device_count(), self._asked)
        self._answers.append(self._any(jax.make_array_from_process_local_data(self._flags, mine)))
        return len(self._answers) > DELAY and bool(self._answers.popleft())

    def check(self, done: str) -> None:
        """Ends here where any process was asked to, even just now; every process must come here.

        Args:
          done: what was saved, which the error says.

        Raises:
          Preempted: where the run is to stop.
        """
        if self._asked if self._alone else multihost_utils.process_allgather(self._asked).any():
            raise Preempted(done)

    def stop_between(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yields the items.

        Raises:
          Preempted: in place of the next item, where the run is to stop.
        """
        for item in items:
            if self.reached():
                raise Preempted("in the middle of an evaluation")
            yield item

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._asked = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)


# Steps that may be under way on the device before the host looks at their metrics.
IN_FLIGHT = 2


class Diverged(UserError):
    """The loss is no longer a number."""


class Log(Protocol):
    """Takes the numbers of a step by name."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...  # noqa: D102


class Fitted(NamedTuple):
    """What a training came to.

    Attributes:
      state: the state after the last step.
      step_seconds: of a step, the median of what was logged; None if nothing was, as by a run of
        one step.
      step_processor_seconds: of all of this process's threads on the processor; likewise.
      images_per_second: likewise.
      step_flops: of a step on all devices, as `kdjax.training.profiling.step_cost` says; None where
        no step was done, or it is not known.
      step_bytes: what a device holds during a step; likewise.
    """

    state: TrainState
    step_seconds: float | None
    step_processor_seconds: float | None
    images_per_second: float | None
    step_flops: float | None
    step_bytes: float | None


def fit(
    state: TrainState,
    teacher_state: Variables | None,
    train_step: TrainStep,
    batches: Iterator[Batch],
    *,
    batch_size: int,
    first_step: int,
    steps: int,
    log_every: int,
    eval_every: int,
    checkpoint_every: int,
    placement: Placement,
    log: Log,
    evaluate: Callable[[int, TrainState], float],
    checkpoints: Checkpoints,
    interruption: Interruption,
    profile: Profile | None = None,
    earlier: Sequence[Mapping[str, float | None]] = (),
) -> Fitted:
    """Trains from `first_step` to `steps`.

    Every `eval_every` steps and at the end, the state is evaluated first and then saved with its
    mIoU. A run that continues from a checkpoint of such a step without a mIoU was stopped in that
    evaluation, and makes it first.

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
      checkpoint_every: steps between two checkpoints, beside those of the evaluations; 0 for none.
      placement: where arrays live.
      log: takes `train/...` values: `step_seconds` is the time of a step, `step_processor_seconds`
        that of all of this process's threads on the processor, `input_wait` the share of the former
        that the host waited for a batch, `checkpoint_seconds` what saving has cost since the
        last line. Times leave out the first step of a start. The first line also has what
        `kdjax.training.profiling.step_cost` says.
      evaluate: called with the step and the state; returns the mIoU.
      checkpoints: where the state is saved.
      interruption: says when to save and stop.
      profile: traces some of the steps.
      earlier: what earlier starts of the run gave to their `log`; the figures are of all of them.

    Returns:
      The last state, and what a step took.

    Raises:
      Diverged: at the first step with a metric that is not finite, naming step and metric.
      Preempted: when the run was asked to stop; the state is saved.
    """
    step_fn = jax.jit(
        train_step,
        donate_argnums=0,
        out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, state), placement.replicated),
        compiler_options=compiler_options(placement.platform),
    )
    clock = Clock(batch_size)
    pending: collections.deque[tuple[int, Metrics]] = collections.deque()
    window: list[dict[str, float]] = []
    cost: dict[str, float] = {}
    logged: list[Mapping[str, float | None]] = list(earlier)

    def settle(limit: int) -> None:
        while len(pending) > limit:
            step, metrics = pending.popleft()
            window.append(_finite(step, metrics, checkpoints))

    def save(step: int, miou: float | None = None) -> None:
        settle(0)
        with clock.saving():
            checkpoints.save(step, state, miou)

    def score(step: int) -> None:
        settle(0)
        with clock.paused():
            try:
                miou = evaluate(step, state)
            except Preempted:
                save(step)
                raise _stopped(step) from None
        save(step, miou)

    def scored_at(step: int) -> bool:
        return step > 0 and (step % eval_every == 0 or step == steps)

    if scored_at(first_step) and not checkpoints.is_scored(first_step):
        score(first_step)
    for step in range(first_step + 1, steps + 1):
        if interruption.reached():
            save(step - 1)
            raise _stopped(step - 1)
        if profile:
            profile.begin(step)
        with clock.waiting():
            batch = next(batches)
        if step == first_step + 1:
            cost = step_cost(step_fn, state, teacher_state, batch)
        state, metrics = step_fn(state, teacher_state, batch)
        pending.append((step, metrics))
        if profile:
            profile.end(step, metrics)
        if step == first_step + 1:
            # The first step is compiled and fills the input pipeline: no line has its time.
            settle(0)
            clock.begin()
        else:
            clock.steps += 1
            settle(IN_FLIGHT)
        if step % log_every == 0 or step == steps:
            settle(0)
            means = {f"train/{key}": float(np.mean([m[key] for m in window])) for key in metrics}
            line = means | clock.read() | cost
            logged.append(line)
            log.scalars(step, line)
            window.clear()
            cost = {}
        if scored_at(step):
            score(step)
        elif checkpoint_every and step % checkpoint_every == 0:
            save(step)

    def found(key: str) -> list[float]:
        values = [line.get(f"train/{key}") for line in logged]
        return [value for value in values if value is not None]

    medians = ("step_seconds", "step_processor_seconds", "images_per_second")
    return Fitted(
        state,
        **{key: statistics.median(found(key)) if found(key) else None for key in medians},
        # Of the last start.
        **{key: next(reversed(found(key)), None) for key in ("step_flops", "step_bytes")},
    )


def _stopped(step: int) -> Preempted:
    return Preempted(f"the checkpoint of step {step} is saved; the same command continues from it")


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
