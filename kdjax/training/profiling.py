"""A trace of some steps, for TensorBoard's profiler and for Perfetto."""

import re
from typing import Any

import jax
from etils import epath

from kdjax.errors import UserError
from kdjax.paths import is_remote


class Profile:
    """Traces the steps from `start` to `stop`, both included, into a directory.

    Args:
      directory: on a disk of this machine; created where it is missing.
      start: the first step to trace; steps count from 1.
      stop: the last.

    Raises:
      UserError: for a directory in an object store, where JAX's profiler cannot write.
    """

    def __init__(self, directory: epath.PathLike, start: int, stop: int):
        if is_remote(directory):
            raise UserError(f"--profile cannot write to {directory}; give a local --workdir")
        self._directory = epath.Path(directory)
        self._start, self._stop = start, stop
        self._tracing = False

    def begin(self, step: int) -> None:
        """Called before the batch of `step` is asked for."""
        if not self._tracing and self._start <= step <= self._stop:
            # Beside what TensorBoard reads, a file for https://ui.perfetto.dev.
            jax.profiler.start_trace(self._directory, create_perfetto_trace=True)
            self._tracing = True

    def end(self, step: int, metrics: Any) -> None:
        """Called when `step` is under way, with what it will return."""
        if self._tracing and step >= self._stop:
            jax.block_until_ready(metrics)
            self.close()

    def close(self) -> None:
        """Writes what has been traced, where a run ends before `stop`."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()


def steps_of(text: str) -> tuple[int, int]:
    """Reads START:STOP, the value of --profile.

    Raises:
      UserError: when it is no such pair.
    """
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None:
        raise UserError(f'--profile is "{text}"; give the first and the last step, as 20:25')
    return int(match.group(1)), int(match.group(2))


def check_steps(start: int, stop: int, steps: int) -> None:
    """Requires that steps to trace are within a run of so many.

    Raises:
      UserError: when they are not.
    """
    if not 1 <= start <= stop <= steps:
        raise UserError(
            f"--profile is {start}:{stop}; give steps from 1 to {steps}, the first one first"
        )
