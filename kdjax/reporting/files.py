"""Whole files, written so that a reader or a killed run never meets half of one."""

import json
import math
import os
from typing import Any

from etils import epath

from kdjax.errors import UserError
from kdjax.paths import is_remote


def write_atomically(path: epath.PathLike, content: str | bytes) -> None:
    """Writes text (as UTF-8) or bytes to a hidden file beside `path`, then renames it to `path`."""
    path = epath.Path(path)
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    # An object appears in its store when all of it is there.
    if is_remote(path):
        try:
            path.write_bytes(data)
        # Every client of a store has errors of its own.
        except Exception as error:
            raise OSError(None, str(error), str(path)) from error
        return
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(data)
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


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
