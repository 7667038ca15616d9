"""Paths, local or in an object store, and files that are written completely or not at all."""

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
from kdjax.utils.errors import Transient, UserError, first_line

# TensorStore reports a full disk only in the text of an error.
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")
# How stores and collectives name failures that may pass.
_PASSING = re.compile(r"\W*(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED|UNKNOWN)\b")
# A spreadsheet takes text that begins with one of these for a formula, which can run commands.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
UNDO_TRIES, UNDO_SECONDS = 10, 0.3


def is_remote(path: epath.PathLike) -> bool:
    """Returns True for a path in an object store, such as `gs://bucket/run`."""
    return "://" in str(path)


def absolute(path: epath.PathLike) -> epath.Path:
    """Returns a path that no longer depends on the working directory."""
    path = epath.Path(path)
    # epath resolves "gs://bucket" to a folder "gs:" of the working directory.
    return path if is_remote(path) else path.resolve()


def reachable(path: epath.PathLike) -> epath.Path:
    """Returns a path whose store answers.

    Raises:
      UserError: if the store does not answer.
      Transient: if the store reports a failure that may pass.
    """
    path = epath.Path(path)
    if is_remote(path):
        # epath opens remote files with TensorFlow if it is installed.
        try:
            with environment.importing_tensorflow():
                path.exists()
        # Clients of stores have their own errors.
        except Exception as error:
            kind = Transient if may_pass(error) else UserError
            raise kind(f"{path}: the store does not answer: {first_line(error)}") from error
    return path


def check_folder(path: epath.PathLike) -> None:
    """Checks that a local path is a folder or can become one.

    Raises:
      UserError: if the path, or a path above it, is a file.
    """
    path = epath.Path(path)
    try:
        existing = next(place for place in (path, *path.parents) if place.exists())
        if not existing.is_dir():
            raise UserError(f"cannot write {path}: {existing} is a file")
    except OSError as error:
        raise UserError(f"cannot write {path}: {why_unwritable(error)}") from error


def os_error_code(error: Exception) -> int | None:
    """Returns the `errno` of an error of Python or TensorStore, or None if it has none."""
    if isinstance(error, OSError):
        return error.errno
    code = _OS_ERROR.search(str(error))
    return int(code[1]) if code else None


def why_unwritable(error: Exception) -> str:
    """Returns in a few words why a file could not be written."""
    if code := os_error_code(error):
        return os.strerror(code)
    return first_line(error)[:200]


def may_pass(error: Exception) -> bool:
    """Returns True if the next try to read or write may succeed."""
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    return bool(_PASSING.match(str(error))) and not _OS_ERROR.search(str(error))


def write_atomically(path: epath.PathLike, content: str | bytes) -> None:
    """Writes text (as UTF-8) or bytes to a hidden file, then renames the file to `path`.

    When the function returns, the content survives a power cut.

    Raises:
      OSError: if the file cannot be written. `path` is then unchanged.
    """
    path = epath.Path(path)
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    # An object store shows an object only when all of it has arrived.
    if is_remote(path):
        try:
            path.write_bytes(data)
        # Clients of stores have their own errors.
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
            with open(os.path.join(directory, name), "rb") as file:
                os.fsync(file.fileno())
        sync_directory(directory)


def remove_all(directory: epath.Path, pattern: str) -> None:
    """Removes the files and folders of a directory whose names match a pattern."""
    for path in directory.glob(pattern):
        path.rmtree() if path.is_dir() else path.unlink()


def undo_unfinished(directory: epath.Path, pattern: str, *, made: bool) -> None:
    """Removes unfinished files. Never raises, because that would hide the error that led here.

    Args:
      directory: the directory of the files.
      pattern: the pattern of the names of unfinished files.
      made: True if the directory was made for the files and is removed, too.
    """
    for _ in range(UNDO_TRIES):
        # Clients of stores have their own errors.
        with contextlib.suppress(Exception):
            remove_all(directory, pattern)
            if made and directory.exists():
                directory.rmdir()
        # Threads of Orbax that were still writing may create the files again.
        time.sleep(UNDO_SECONDS)
        if not (directory.exists() if made else any(directory.glob(pattern))):
            return


def read_json(path: epath.PathLike) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
      UserError: if the file holds anything else.
    """
    try:
        found = json.loads(epath.Path(path).read_text())
    except ValueError as error:
        raise UserError(f"{path}: damaged: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: damaged: no JSON object")
    return found


def to_json(value: Any, indent: int | None = 2) -> str:
    """Returns JSON that every reader accepts, with a final line break. NaN and inf become `null`.

    Args:
      value: dicts with text keys, lists, tuples, text, numbers, and None.
      indent: as in `json.dumps`. None writes a single line.
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_csv(rows: Iterable[Sequence[str | float | None]]) -> str:
    """Returns CSV. Numbers are not rounded, and None and NaN become empty cells.

    Text that a spreadsheet would run as a formula gets an apostrophe in front. `csv_text` removes
    the apostrophe.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def csv_text(cell: str) -> str:
    """Returns the text of a cell that `to_csv` wrote."""
    return cell[1:] if cell.startswith("'") and _is_formula(cell) else cell


def _cell(value: str | float | None) -> str | float:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"'{value}" if isinstance(value, str) and _is_formula(value) else value


def _is_formula(text: str) -> bool:
    # Text that begins with apostrophes and a formula needs one more, to be read back unchanged.
    return text.lstrip("'").startswith(_FORMULA)


def shipped_folder(name: str) -> pathlib.Path:
    """Returns the folder "datasets" or "configs", in the package or in the checkout around it.

    A folder of that name beside an installed package belongs to another project, such as the
    package `datasets` of Hugging Face.
    """
    package = pathlib.Path(__file__).resolve().parents[1]
    own, checkout = package / name, package.parent
    if not own.is_dir() and (checkout / "pyproject.toml").is_file():
        return checkout / name
    return own
