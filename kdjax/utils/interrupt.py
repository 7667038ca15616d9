"""Ctrl-C in a command: one line and exit status 130, even while libraries are imported.

Python raises KeyboardInterrupt in the middle of any code. A library that is being imported may turn
it into an ImportError, swallow it, or crash. This module imports only the standard library.
"""

import os
import signal
import threading
from types import FrameType

STATUS = 130
_LINE = b"\nkdjax: interrupted\n"
_IMPORT = "<frozen importlib._bootstrap>"
_once = threading.Lock()


def end_at_once() -> None:
    """Lets Ctrl-C end this process, which has nothing to save or remove yet."""
    signal.signal(signal.SIGINT, lambda *_: end())


def raise_error() -> None:
    """Lets Ctrl-C raise KeyboardInterrupt, so that the command removes its temporary files.

    While a library is imported, Ctrl-C still ends the process at once.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        above = frame
        while above:
            if above.f_code.co_filename == _IMPORT:
                end()
            above = above.f_back
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, handle)


def end() -> None:
    """Ends this process, whatever its threads do. Several threads may call this at once."""
    if _once.acquire(blocking=False):
        os.write(2, _LINE)
        os._exit(STATUS)
