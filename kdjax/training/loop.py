"""The training loop: step, log, evaluate, save, until the last step or a stop signal."""

import collections
import dataclasses
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

# Several processes read their agreement this many calls of `reached` later, when the devices have
# long computed it, so that asking never waits.
DELAY = 2
# Steps that may be running on the device before the host reads their metrics.
IN_FLIGHT = 2


class Interruption:
    """Inside this context, SIGTERM and SIGINT ask the run to stop instead of ending the process.

    A second SIGINT interrupts at once. If one of several processes is asked, all stop. In threads
    other than the main one, where Python handles no signals, signals keep their effect.
    """

    def __init__(self) -> None:
        self._asked = False
        self._earlier: dict[int, Any] = {}
        self._hearer = -1
        self._answers: collections.deque[jax.Array] = collections.deque()
        self._alone = not jax.distributed.is_initialized()
        # The rest takes the devices, which a single process may leave to its children.
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
        # A thread that reads the wakeup file would end the process.
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
        """Returns True if the run must stop. Every process must ask at the same points."""
        if self._alone:
            return self._asked
        mine = np.full(jax.local_device_count(), self._asked)
        self._answers.append(self._any(jax.make_array_from_process_local_data(self._flags, mine)))
        return len(self._answers) > DELAY and bool(self._answers.popleft())

    def check(self, done: str) -> None:
        """Stops if any process has received a stop signal. Every process must call this.

        Args:
          done: the saved work, for the error's message.

        Raises:
          Preempted: if the run must stop.
        """
        if self._asked if self._alone else multihost_utils.process_allgather(self._asked).any():
            raise Preempted(done)

    def stop_between(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yields the items.

        Raises:
          Preempted: in place of the next item, if the run must stop.
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


class Diverged(UserError):
    """The loss is not finite."""


class Log(Protocol):
    """Receives the numbers of a step by name."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...  # noqa: D102


@dataclasses.dataclass(frozen=True)
class Intervals:
    """The length of a training and how often it reports.

    Attributes:
      steps: steps in all.
      log_every: steps between two log lines. Each line holds means over the steps since the last.
      eval_every: steps between two evaluations.
      checkpoint_every: steps between two checkpoints besides those of evaluations; 0 for none.
      batch_size: images in a batch of all processes together, for the images per second.
    """

    steps: int
    log_every: int
    eval_every: int
    checkpoint_every: int
    batch_size: int


@dataclasses.dataclass(frozen=True)
class Hooks:
    """The functions and objects that a training calls.

    Attributes:
      log: receives `train/...` values. `step_seconds` is the time of a step,
        `step_processor_seconds` the processor time of all threads of this process, `input_wait` the
        share of the time that the host waited for a batch, and `checkpoint_seconds` the time of
        saving since the last line. Times exclude the first step after a start. The first line also
        holds the values of `kdjax.training.profiling.step_cost`.
      evaluate: returns the mIoU of a state, given the step and the state.
      checkpoints: saves the state.
      interruption: says when to save and stop.
      profile: traces some of the steps.
    """

    log: Log
    evaluate: Callable[[int, TrainState], float]
    checkpoints: Checkpoints
    interruption: Interruption
    profile: Profile | None = None


class Fitted(NamedTuple):
    """The result of a training.

    Attributes:
      state: the state after the last step.
      step_seconds: the time of a step, the median of the log lines. None without a log line, as in
        a run of one step.
      step_processor_seconds: the processor time of a step, of all threads of this process.
      images_per_second: the images per second.
      step_flops: the operations of a step on all devices, from
        `kdjax.training.profiling.step_cost`. None if no step was done or the number is unknown.
      step_bytes: the bytes that a device holds during a step.
    """

    state: TrainState
    step_seconds: float | None
    step_processor_seconds: float | None
    images_per_second: float | None
    step_flops: float | None
    step_bytes: float | None


def jit_step(train_step: TrainStep, state: TrainState, placement: Placement) -> Any:
    """Returns the step under `jax.jit`. It gives up the state's buffers.

    Args:
      train_step: as `kdjax.training.step.make_train_step` returns it.
      state: a state on the devices, whose shardings the next states get.
      placement: the mesh.
    """
    return jax.jit(
        train_step,
        donate_argnums=0,
        out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, state), placement.replicated),
        compiler_options=compiler_options(placement.platform),
    )


def fit(
    state: TrainState,
    teacher: Variables | None,
    step_fn: Any,
    batches: Iterator[Batch],
    intervals: Intervals,
    hooks: Hooks,
    *,
    first_step: int = 0,
    earlier: Sequence[Mapping[str, float | None]] = (),
) -> Fitted:
    """Trains from `first_step` to the last step.

    After every `eval_every` steps and at the end, the state is first evaluated and then saved with
    its mIoU. If a run continues from the checkpoint of such a step and the checkpoint has no mIoU,
    the run was stopped during that evaluation, which therefore comes first.

    Args:
      state: the state after `first_step` steps. Its buffers are given up.
      teacher: the variables of the frozen teacher, or None.
      step_fn: as `jit_step` returns it.
      batches: the batches of the steps after `first_step`, on the devices.
      intervals: the number of steps, and when to log, evaluate, and save.
      hooks: what the training calls.
      first_step: the number of steps that were done before.
      earlier: the log lines of earlier starts of the run. The result includes them.

    Raises:
      Diverged: at the first step with a metric that is not finite. The message names both.
      Preempted: if the run was asked to stop. The state is saved.
    """
    loop = _Loop(state, intervals, hooks, [*earlier])
    loop.evaluate_if_missed(first_step)
    for step in range(first_step + 1, intervals.steps + 1):
        if hooks.interruption.reached():
            loop.save(step - 1)
            raise _stopped(step - 1)
        if hooks.profile:
            hooks.profile.begin(step)
        with loop.clock.waiting():
            batch = next(batches)
        first = step == first_step + 1
        if first:
            loop.cost = step_cost(step_fn, loop.state, teacher, batch)
        loop.state, metrics = step_fn(loop.state, teacher, batch)
        if hooks.profile:
            hooks.profile.end(step, metrics)
        loop.count(step, metrics, first)
        loop.report(step)
    return loop.result()


class _Loop:
    """The state of a training between steps."""

    def __init__(
        self,
        state: TrainState,
        intervals: Intervals,
        hooks: Hooks,
        logged: list[Mapping[str, float | None]],
    ):
        self.state = state
        self.clock = Clock(intervals.batch_size)
        self.cost: dict[str, float] = {}
        self._intervals, self._hooks = intervals, hooks
        self._logged = logged
        self._pending: collections.deque[tuple[int, Metrics]] = collections.deque()
        # The metrics of the steps since the last log line.
        self._window: list[dict[str, float]] = []

    def count(self, step: int, metrics: Metrics, first: bool) -> None:
        """Takes the metrics of a step that may still be running."""
        self._pending.append((step, metrics))
        if first:
            # This step includes compilation and the start of the input pipeline, so no line counts
            # its time.
            self._settle(0)
            self.clock.begin()
        else:
            self.clock.steps += 1
            self._settle(IN_FLIGHT)

    def report(self, step: int) -> None:
        """Logs, evaluates, and saves if it is time."""
        every = self._intervals
        if step % every.log_every == 0 or step == every.steps:
            self._log(step)
        if self._evaluated_at(step):
            self._evaluate(step)
        elif every.checkpoint_every and step % every.checkpoint_every == 0:
            self.save(step)

    def save(self, step: int, miou: float | None = None) -> None:
        self._settle(0)
        with self.clock.saving():
            self._hooks.checkpoints.save(step, self.state, miou)

    def evaluate_if_missed(self, step: int) -> None:
        """Makes the evaluation in which an earlier start was stopped."""
        if self._evaluated_at(step) and not self._hooks.checkpoints.is_scored(step):
            self._evaluate(step)

    def result(self) -> Fitted:
        def found(key: str) -> list[float]:
            values = [line.get(f"train/{key}") for line in self._logged]
            return [value for value in values if value is not None]

        medians = ("step_seconds", "step_processor_seconds", "images_per_second")
        return Fitted(
            self.state,
            **{key: statistics.median(found(key)) if found(key) else None for key in medians},
            # Those of the last start.
            **{key: next(reversed(found(key)), None) for key in ("step_flops", "step_bytes")},
        )

    def _settle(self, limit: int) -> None:
        """Reads metrics until at most `limit` steps are unread."""
        while len(self._pending) > limit:
            step, metrics = self._pending.popleft()
            self._window.append(_finite(step, metrics, self._hooks.checkpoints))

    def _log(self, step: int) -> None:
        self._settle(0)
        means = {
            f"train/{key}": float(np.mean([metrics[key] for metrics in self._window]))
            for key in self._window[0]
        }
        line = means | self.clock.read() | self.cost
        self._logged.append(line)
        self._hooks.log.scalars(step, line)
        self._window.clear()
        self.cost = {}

    def _evaluate(self, step: int) -> None:
        self._settle(0)
        with self.clock.paused():
            try:
                miou = self._hooks.evaluate(step, self.state)
            except Preempted:
                self.save(step)
                raise _stopped(step) from None
        self.save(step, miou)

    def _evaluated_at(self, step: int) -> bool:
        every = self._intervals
        return step > 0 and (step % every.eval_every == 0 or step == every.steps)


def _stopped(step: int) -> Preempted:
    return Preempted(f"the checkpoint of step {step} is saved; the same command continues from it")


def _finite(step: int, metrics: Metrics, checkpoints: Checkpoints) -> dict[str, float]:
    values = {key: float(value) for key, value in metrics.items()}
    # The terms before their sum, so that the message names a term.
    for key in sorted(values, key=lambda key: key == "loss"):
        if not math.isfinite(values[key]):
            kept = checkpoints.latest_step
            saved = f"the checkpoint of step {kept} is kept" if kept else "no checkpoint was made"
            raise Diverged(
                f"the run diverged: {key} is {values[key]} at step {step}; {saved}. Lower "
                "config.optimizer.learning_rate or set config.optimizer.gradient_clip"
            )
    return values
