"""Paths, also of object stores, and files that are there whole or not at all."""

import contextlib
import csv
import errno
import io
import json
import math
import os
import pathlib
import re
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath

from kdjax.utils import environment
from kdjax.utils.errors import Transient, UserError

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
        environment.set_up_tensorflow()
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


def os_error_code(error: Exception) -> int | None:
    """Returns the `errno` of what Python or TensorStore raised; None if it has none."""
    if isinstance(error, OSError):
        return error.errno
    code = _OS_ERROR.search(str(error))
    return int(code[1]) if code else None


def why_unwritable(error: Exception) -> str:
    """Returns in a few words why a file could not be written."""
    if code := os_error_code(error):
        return os.strerror(code)
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def may_pass(error: Exception) -> bool:
    """Returns True if what kept a file from being read or written may be gone at the next try."""
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    return bool(_PASSING.match(str(error))) and not _OS_ERROR.search(str(error))


UNDO_TRIES, UNDO_SECONDS = 10, 0.3
# What makes a spreadsheet take the text of a cell for a formula, which can run anything.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def write_atomically(path: epath.PathLike, content: str | bytes) -> None:
    """Writes text (as UTF-8) or bytes to a hidden file, then renames the file to `path`.

    When the function returns, the content survives a power cut.

    Raises:
      OSError: if the file cannot be written; `path` is then unchanged.
    """
    path = epath.Path(path)
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    # An object store shows an object only when all of it has arrived.
    if is_remote(path):
        try:
            path.write_bytes(data)
        # Every client of a store has its own errors.
        except Exception as error:
            raise OSError(None, str(error), str(path)) from error
        return
    # Two threads may write the same file at the same time.
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with open(unfinished, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException as error:
        unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError):
            # Writing to an open file raises errors without a path.
            error.filename = str(path)
        raise
    sync_directory(path.parent)


def sync_directory(path: epath.PathLike) -> None:
    """Makes the names in a local directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network disks cannot sync directories, and keep the names on their server.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def sync_tree(path: epath.PathLike) -> None:
    """Makes all files and directories under a local directory survive a power cut."""
    for directory, _, names in os.walk(path, topdown=False):
        for name in names:
            descriptor = os.open(os.path.join(directory, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_directory(directory)


def remove_all(directory: epath.Path, pattern: str) -> None:
    """Removes the files and folders of a directory whose names match a pattern."""
    for path in directory.glob(pattern):
        path.rmtree() if path.is_dir() else path.unlink()


def undo_unfinished(directory: epath.Path, pattern: str, *, made: bool) -> None:
    """Removes what was begun; never raises, which would hide the error that led here.

    Args:
      directory: where it was begun.
      pattern: of the names of what is unfinished; Orbax's own begin as the finished one's.
      made: whether the directory was made for it, and goes too.
    """
    for _ in range(UNDO_TRIES):
        # epath's errors are of many kinds.
        with contextlib.suppress(Exception):
            remove_all(directory, pattern)
            if made and directory.exists():
                directory.rmdir()
        # Threads of Orbax that were at work when it gave up may make it anew.
        time.sleep(UNDO_SECONDS)
        if not (directory.exists() if made else any(directory.glob(pattern))):
            return


def read_json(path: epath.PathLike) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
      UserError: when the file holds something else.
    """
    try:
        found = json.loads(epath.Path(path).read_text())
    except ValueError as error:
        raise UserError(f"{path}: damaged: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: damaged: no JSON object")
    return found


def to_json(value: Any, indent: int | None = 2) -> str:
    """JSON as every reader takes it, with a line break: what is not finite becomes `null`.

    Args:
      value: of dicts with text for keys, lists, tuples, text, numbers and None.
      indent: as `json.dumps` takes it; None for a single line.
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """JSON has no word for NaN and infinity, and Python's own breaks other readers."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_csv(rows: Iterable[Sequence[str | float | None]]) -> str:
    """CSV that spreadsheets and other readers take alike.

    Numbers are not rounded, and what is not known is empty. An apostrophe stands before text that a
    spreadsheet would run as a formula; `csv_text` takes it off.

    Args:
      rows: text, numbers, and None or NaN for what is not known.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def csv_text(cell: str) -> str:
    """The text that `to_csv` wrote."""
    return cell[1:] if cell.startswith("'") and _runs(cell) else cell


def _cell(value: str | float | None) -> str | float:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"'{value}" if isinstance(value, str) and _runs(value) else value


def _runs(text: str) -> bool:
    """Whether a spreadsheet may run it, or only apostrophes keep it from that."""
    return text.lstrip("'").startswith(_FORMULA)


def shipped_folder(name: str) -> pathlib.Path:
    """Where `name`, as "datasets" or "configs", lies: in the package, or in the checkout around it.

    A folder of that name beside an installed package is somebody else's, as `datasets` is that of
    HuggingFace, and is never looked into.
    """
    package = pathlib.Path(__file__).resolve().parents[1]
    own, checkout = package / name, package.parent
    if not own.is_dir() and (checkout / "pyproject.toml").is_file():
        return checkout / name
    return own
