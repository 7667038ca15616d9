"""The runs of a comparison as one CSV: a row a run, with its scores on every split by class.

What a table says can be derived from it again, and more than the table says.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from kdjax.reporting.files import csv_text, to_csv, write_atomically
from kdjax.reporting.results import RunSummary

# What a run is, and what it was given; metrics are shares of one.
_TEXTS = ("method", "role", "config_fingerprint")
_COUNTS = ("seed", "steps", "parameters")
_NUMBERS = (
    "learning_rate",
    "seconds",
    "step_seconds",
    "step_processor_seconds",
    "images_per_second",
    "step_flops",
    "step_bytes",
)
_SCORES = ("miou", "pixel_accuracy", "agreement")


def write_runs(
    path: epath.PathLike, splits: Mapping[str, Sequence[RunSummary]], class_names: Sequence[str]
) -> None:
    """Writes runs as CSV.

    Args:
      path: the file.
      splits: by split, the same runs in the same order with their scores on it.
      class_names: K names.
    """
    given = (*_TEXTS[:2], *_COUNTS[:2], *_TEXTS[2:], *_COUNTS[2:], *_NUMBERS)
    scores = [*_SCORES, *(f"iou {name}" for name in class_names)]
    rows = [[*given, *(f"{split} {score}" for split in splits for score in scores)]]
    for summaries in zip(*splits.values(), strict=True):
        row = [getattr(summaries[0], field) for field in given]
        for run in summaries:
            row += [*(getattr(run, field) for field in _SCORES), *run.class_iou]
        rows.append(row)
    write_atomically(path, to_csv(rows))


def read_runs(path: epath.PathLike) -> dict[str, list[RunSummary]]:
    """Reads what `write_runs` wrote: by split, the runs with their scores on it.

    Columns that a file lacks are not known of its runs.
    """
    rows = [
        {csv_text(name): text for name, text in row.items()}
        for row in csv.DictReader(io.StringIO(epath.Path(path).read_text()))
    ]
    # A class may be called as a score is.
    splits = [
        name.removesuffix(" miou")
        for name in rows[0]
        if name.endswith(" miou") and " iou " not in name
    ]
    return {split: [_summary(row, split) for row in rows] for split in splits}


def _summary(row: Mapping[str, str], split: str) -> RunSummary:
    values: dict[str, Any] = {field: csv_text(row.get(field, "")) or None for field in _TEXTS}
    values |= {field: int(text) if (text := row.get(field)) else None for field in _COUNTS}
    values |= {field: _number(row.get(field)) for field in _NUMBERS}
    values |= {field: _number(row.get(f"{split} {field}")) for field in _SCORES}
    for field in ("miou", "pixel_accuracy"):
        values[field] = _or_nan(values[field])
    iou = [_or_nan(_number(text)) for name, text in row.items() if name.startswith(f"{split} iou ")]
    return RunSummary(**values, class_iou=iou)


def _number(text: str | None) -> float | None:
    return float(text) if text else None


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
