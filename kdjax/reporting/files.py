"""Whole files, written so that a reader or a killed run never meets half of one."""

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath

from kdjax.errors import UserError
from kdjax.paths import is_remote

# What makes a spreadsheet take the text of a cell for a formula, which can run anything.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


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
