"""What the time of a run goes into: steps, waiting for batches, saving; evaluations stand apart."""

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """Adds up the seconds between two lines of the log.

    Args:
      batch_size: images in a step.

    Attributes:
      steps: done since the last line; whoever does them counts them.
    """

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._begin()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for a batch."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is no part of the steps."""
        started, worked = time.perf_counter(), time.process_time()
        yield
        self._since += time.perf_counter() - started
        self._worked += time.process_time() - worked

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Around what writes a checkpoint, as far as the run waits for it."""
        started = time.perf_counter()
        with self.paused():
            yield
        self._saved += time.perf_counter() - started

    def read(self) -> dict[str, float]:
        """The numbers of a line of the log; the next line begins here."""
        passed = time.perf_counter() - self._since
        values = {
            "train/images_per_second": self.steps * self._batch_size / passed,
            "train/step_seconds": passed / self.steps,
            "train/step_processor_seconds": (time.process_time() - self._worked) / self.steps,
            "train/input_wait": self._waited / passed,
            "train/checkpoint_seconds": self._saved,
        }
        self._begin()
        return values

    def _begin(self) -> None:
        self.steps = 0
        self._waited = self._saved = 0.0
        self._since = time.perf_counter()
        self._worked = time.process_time()
