"""The cost of a step: time, multiplications, memory, and a trace."""

import contextlib
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.extend import core
from jax.interpreters import partial_eval

from kdjax.utils.errors import UserError
from kdjax.utils.files import is_remote


class Clock:
    """Adds up the seconds between two lines of the log.

    Args:
      batch_size: images in a step.

    Attributes:
      steps: the timed steps since the last line; the caller counts them.
    """

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self.begin()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside this context as waiting for a batch."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time inside this context from the time of the steps."""
        started, worked = time.perf_counter(), time.process_time()
        yield
        self._since += time.perf_counter() - started
        self._worked += time.process_time() - worked

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Counts the time inside this context as saving a checkpoint."""
        started = time.perf_counter()
        with self.paused():
            yield
        self._saved += time.perf_counter() - started

    def read(self) -> dict[str, float]:
        """Returns the numbers of a line of the log, and starts the next line.

        Times are missing if no step was timed.
        """
        passed = time.perf_counter() - self._since
        values = {"train/checkpoint_seconds": self._saved}
        if self.steps:
            values |= {
                "train/images_per_second": self.steps * self._batch_size / passed,
                "train/step_seconds": passed / self.steps,
                "train/step_processor_seconds": (time.process_time() - self._worked) / self.steps,
                "train/input_wait": self._waited / passed,
            }
        self.begin()
        return values

    def begin(self) -> None:
        """Starts a line of the log."""
        self.steps = 0
        self._waited = self._saved = 0.0
        self._since = time.perf_counter()
        self._worked = time.process_time()


def logged_seconds(lines: Iterable[Mapping[str, float | None]]) -> float:
    """Estimates the seconds of a training from its log: steps, evaluations, and checkpoints.

    Args:
      lines: the lines of `kdjax.training.loop.fit` and of its caller, each with its `step`.
    """
    seconds, timed = 0.0, 0.0
    for line in lines:
        seconds += (line.get("val/seconds") or 0.0) + (line.get("train/checkpoint_seconds") or 0.0)
        if (each := line.get("train/step_seconds")) and (step := line["step"]):
            seconds += each * (step - timed)
            timed = step
    return seconds


def count_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Counts the multiplications and additions of all convolutions and matrix products.

    XLA's own count has every loop once, and differs between back ends. Results that nothing needs
    do not count. A `while` loop of unknown length counts once.

    Args:
      function: a function that JAX can trace.
      *arguments: pytrees of arrays or `jax.ShapeDtypeStruct`.
    """
    return _count_program(jax.make_jaxpr(function)(*arguments))


def _count_program(closed: core.ClosedJaxpr) -> int:
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.out_avals))
    return _count(jaxpr)


def _count(jaxpr: core.Jaxpr) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: core.JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left, out = _shape(equation.invars[0]), _shape(equation.outvars[0])
        return 2 * math.prod(out) * math.prod(left[i] for i in contracted)
    if name == "conv_general_dilated":
        return _count_convolution(equation)
    # Programs inside, such as the body of a loop. `core.ClosedJaxpr` has the same equations.
    values = jax.tree.leaves(tuple(params.values()), is_leaf=lambda x: hasattr(x, "eqns"))
    inner = [_count(value) for value in values if hasattr(value, "eqns")]
    if name == "cond":
        return max(inner)
    return params.get("length", 1) * sum(inner) if name == "scan" else sum(inner)


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _count_convolution(equation: core.JaxprEqn) -> int:
    """Counts the operations of a convolution, without products with padding or inserted zeros."""
    params = equation.params
    numbers = params["dimension_numbers"]
    image, kernel = map(_shape, equation.invars)
    out = _shape(equation.outvars[0])
    pairs = math.prod(
        _pairs(image[i], kernel[k], out[o], *window)
        for i, k, o, *window in zip(
            numbers.lhs_spec[2:],
            numbers.rhs_spec[2:],
            numbers.out_spec[2:],
            params["window_strides"],
            params["padding"],
            params["lhs_dilation"],
            params["rhs_dilation"],
            strict=True,
        )
    )
    out_features, in_features = (kernel[i] for i in numbers.rhs_spec[:2])
    batch = image[numbers.lhs_spec[0]] // params["batch_group_count"]
    return 2 * batch * out_features * in_features * pairs


def _pairs(
    image: int,
    kernel: int,
    out: int,
    stride: int,
    padding: tuple[int, int],
    image_dilation: int,
    kernel_dilation: int,
) -> int:
    """Counts the pairs of output and kernel positions on an axis that meet a pixel."""
    place = np.arange(out)[:, None] * stride + np.arange(kernel) * kernel_dilation - padding[0]
    inside = (place >= 0) & (place <= (image - 1) * image_dilation)
    return int((inside & (place % image_dilation == 0)).sum())


def step_cost(step_fn: Any, *arguments: Any) -> dict[str, float]:
    """Compiles a step, so that its first call need not, and returns its cost.

    Args:
      step_fn: the step under `jax.jit`.
      *arguments: the arguments of the first call. They are not donated.

    Returns:
      `train/step_flops`, the multiplications and additions on all devices together, and
      `train/step_bytes`, the memory of the step on a device: arguments, results that reuse no
      argument's memory, and temporaries. The latter is missing if the back end does not report it.
    """
    traced = step_fn.trace(*arguments)
    cost = {"train/step_flops": float(_count_program(traced.jaxpr))}
    memory = traced.lower().compile().memory_analysis()
    if memory is not None:
        cost["train/step_bytes"] = float(
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
            + memory.temp_size_in_bytes
        )
    return cost


class Profile:
    """Traces the steps from `start` to `stop`, both included, into a directory.

    Args:
      directory: a local directory, which is created if it does not exist.
      start: the first step to trace; steps count from 1.
      stop: the last step to trace.

    Raises:
      UserError: if the directory is in an object store, where JAX's profiler cannot write.
    """

    def __init__(self, directory: epath.PathLike, start: int, stop: int):
        if is_remote(directory):
            raise UserError(f"--profile cannot write to {directory}; give a local --workdir")
        self._directory = epath.Path(directory)
        self._start, self._stop = start, stop
        self._tracing = False

    def begin(self, step: int) -> None:
        """Must be called before the batch of `step` is requested."""
        if not self._tracing and self._start <= step <= self._stop:
            # Also writes a file for https://ui.perfetto.dev.
            jax.profiler.start_trace(self._directory, create_perfetto_trace=True)
            self._tracing = True

    def end(self, step: int, metrics: Any) -> None:
        """Must be called after `step` is dispatched, with its metrics."""
        if self._tracing and step >= self._stop:
            jax.block_until_ready(metrics)
            self.close()

    def close(self) -> None:
        """Ends the trace, also if the run ends before `stop`."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()


def steps_of(text: str) -> tuple[int, int]:
    """Reads START:STOP, the value of --profile.

    Raises:
      UserError: if the text is not such a pair.
    """
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None:
        raise UserError(f'--profile is "{text}"; give the first and the last step, as 20:25')
    return int(match.group(1)), int(match.group(2))


def check_steps(start: int, stop: int, steps: int) -> None:
    """Checks that the steps to trace are steps of the run.

    Raises:
      UserError: if they are not.
    """
    if not 1 <= start <= stop <= steps:
        raise UserError(
            f"--profile is {start}:{stop}; give steps from 1 to {steps}, the first one first"
        )
