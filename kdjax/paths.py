"""Paths that may lie in an object store."""

import os
import re

from etils import epath

from kdjax import tensorflow_environment
from kdjax.errors import Transient, UserError

# TensorStore has no type for a full disk; it says so behind the names of its files.
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")
# The words of stores, and of processes that write together, for what is nobody's mistake.
_PASSING = re.compile(r"\W*(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED|UNKNOWN)\b")


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path is one of an object store, as `gs://bucket/run`."""
    return "://" in str(path)


def absolute(path: epath.PathLike) -> epath.Path:
    """Returns a path that no longer depends on the working directory."""
    path = epath.Path(path)
    # epath resolves "gs://bucket" to a folder "gs:" of the working directory.
    return path if is_remote(path) else path.resolve()


def reachable(path: epath.PathLike) -> epath.Path:
    """Returns a path that can be asked whether something is there.

    Raises:
      UserError: when its store does not answer.
      Transient: when it says itself that it may at the next try.
    """
    path = epath.Path(path)
    if is_remote(path):
        # Whose files epath opens with TensorFlow, where that is installed.
        tensorflow_environment.set_up()
        try:
            path.exists()
        # Every client of a store has errors of its own.
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            kind = Transient if may_pass(error) else UserError
            raise kind(f"{path}: the store does not answer: {reason}") from error
    return path


def check_folder(path: epath.PathLike) -> None:
    """Checks that a local path is a folder, or that one can be made there.

    Raises:
      UserError: naming the file that is there or above.
    """
    path = epath.Path(path)
    try:
        there = next(place for place in (path, *path.parents) if place.exists())
        if not there.is_dir():
            raise UserError(f"cannot write {path}: {there} is a file")
    except OSError as error:
        raise UserError(f"cannot write {path}: {why_unwritable(error)}") from error


def why_unwritable(error: Exception) -> str:
    """What kept a file from being written, in a few words, from what a library raised."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if code := _OS_ERROR.search(str(error)):
        return os.strerror(int(code[1]))
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def may_pass(error: Exception) -> bool:
    """Whether what kept a file from being read or written may be gone at the next try."""
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    return bool(_PASSING.match(str(error))) and not _OS_ERROR.search(str(error))
