"""Errors that no caller can catch: in threads of libraries, in callbacks from C++, at exit."""

import logging
import sys
import threading
import traceback
import warnings
from types import TracebackType

# What TensorStore answers about the other files when Orbax has given up on one of them.
_LATE_ANSWER = "Event loop is closed"


def hold_back() -> list[str]:
    """Keeps such errors from stderr, for as long as the process lives.

    Where a disk fills up or a checkpoint is damaged, Orbax, TensorStore, asyncio and TensorBoard's
    writer each report it, in dozens of tracebacks around the one line that kdjax makes of it.

    Returns:
      Their tracebacks, to which those that are still to come are added.
    """
    strays: list[str] = []

    # Formatted at once: whoever keeps the error keeps alive what is just being deleted.
    def keep(
        kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if str(error) != _LATE_ANSWER:
            strays.append("".join(traceback.format_exception(kind, error, trace)))

    sys.unraisablehook = lambda stray: keep(stray.exc_type, stray.exc_value, stray.exc_traceback)
    threading.excepthook = lambda stray: keep(stray.exc_type, stray.exc_value, stray.exc_traceback)
    # What Orbax would have written next is never begun.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    return strays
