"""Progress lines: the logger "kdjax", which prints in the process that leads a run.

The first line that kdjax logs adds the handler that prints, unless the program has configured
logging: by a handler on the logger "kdjax", or on the root logger at level INFO or below.
`logging.getLogger("kdjax").setLevel(logging.WARNING)` silences progress.
"""

import logging
from collections.abc import MutableMapping
from typing import Any

from kdjax.utils import processes


class _PrintHandler(logging.Handler):
    """Prints to the current `sys.stdout`, which notebooks and tests replace."""

    def emit(self, record: logging.LogRecord) -> None:
        if processes.leads():
            print(self.format(record), flush=True)


def show_progress() -> None:
    """Prints progress on stdout, unless the program has configured logging."""
    progress = logging.getLogger("kdjax")
    configured = progress.hasHandlers() and progress.isEnabledFor(logging.INFO)
    if progress.handlers or configured:
        return
    if progress.level == logging.NOTSET:
        progress.setLevel(logging.INFO)
    progress.addHandler(_PrintHandler())
    # A handler of the root logger, such as Abseil's, would print the line again on stderr.
    progress.propagate = False


class RunLogger(logging.LoggerAdapter[logging.Logger]):
    """Logs progress, and prefixes every line with the name of the run.

    Args:
      run: the name of the run, such as "cwd, seed 0". None for lines without a prefix.
    """

    def __init__(self, run: str | None = None):
        super().__init__(logging.getLogger("kdjax"))
        self.run = run

    def isEnabledFor(self, level: int) -> bool:
        """Returns True if the level is logged. `logging` asks before every line."""
        show_progress()
        return super().isEnabledFor(level)

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        """Adds the prefix."""
        return (f"{self.run}: {msg}" if self.run else msg), kwargs


logger = RunLogger()
"""Logs lines that belong to no single run."""
