"""Stops a run that is asked to: at a point that all its processes agree on, so that it can save."""

import collections
import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from kdjax.errors import Preempted

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
