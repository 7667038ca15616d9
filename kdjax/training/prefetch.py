"""Batches on the devices before the step that takes them is started."""

import collections
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Host = TypeVar("Host")
Device = TypeVar("Device")


def prefetch(
    batches: Iterable[Host], put: Callable[[Host], Device], *, ahead: int = 1
) -> Iterator[Device]:
    """Yields every batch once it is placed and `ahead` further ones are on their way.

    Placing returns before the copy is done, and so does the start of a step: with one batch ahead,
    the copy of the next batch runs beside the computation of this one.

    Args:
      batches: what is to be placed.
      put: places one on the devices, as `Placement.put_batch`.
      ahead: batches beyond the one that is yielded; each takes its size in device memory.
    """
    queue: collections.deque[Device] = collections.deque()
    for batch in batches:
        queue.append(put(batch))
        if len(queue) > ahead:
            yield queue.popleft()
    yield from queue
