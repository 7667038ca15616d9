"""What kdjax says while it works: the logger "kdjax", printed by the process that leads a run.

A program of one's own hears less of it with `logging.getLogger("kdjax").setLevel(...)`, and takes
it elsewhere by a handler on that logger before it calls kdjax.
"""

import logging
from collections.abc import MutableMapping
from typing import Any

from kdjax.utils import processes


class _Print(logging.Handler):
    """Prints to the `sys.stdout` of the moment, which notebooks and tests exchange."""

    def emit(self, record: logging.LogRecord) -> None:
        if processes.leads():
            print(self.format(record), flush=True)


logger = logging.getLogger("kdjax")
if logger.level == logging.NOTSET:
    logger.setLevel(logging.INFO)
if not logger.handlers:
    logger.addHandler(_Print())
    # A handler of the root logger, as Abseil's, would say it again on stderr.
    logger.propagate = False


class RunLogger(logging.LoggerAdapter[logging.Logger]):
    """Says what is said of one run, behind its name.

    Args:
      run: what the run is called, as "cwd, seed 0".
    """

    def __init__(self, run: str):
        super().__init__(logger)
        self.run = run

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[str, MutableMapping[str, Any]]:
        """As `logging.LoggerAdapter` has it."""
        return f"{self.run}: {msg}", kwargs
