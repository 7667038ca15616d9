"""What finished runs hand to the tables and the report, and all of it as one CSV."""

import csv
import dataclasses
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from etils import epath

from kdjax.utils.files import csv_text, to_csv, write_atomically

Role = Literal["teacher", "plain", "distilled"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One trained network. Metrics are shares of one, 0 to 1.

    Attributes:
      method: The row of the table that the run belongs to; runs of a method differ in `seed`.
      role: A teacher, a student trained without one, or a distilled student.
      steps: Training steps; None for a network that was given, as are the next and the times.
      learning_rate: The highest of the schedule.
      class_iou: `[K]`; NaN where neither labels nor predictions hold the class.
      parameters: Of the network alone, without adapters.
      seconds: Wall time of the training, over all starts of the run.
      step_seconds: Of a step, the median of what was logged. The first step of a start is left out.
      step_processor_seconds: On the processor, of all threads of the first process; likewise.
      images_per_second: Likewise.
      step_flops: Multiplications and additions of a step on all devices; None where not known.
      step_bytes: What a device holds during a step; likewise.
      config_fingerprint: Of what was trained, wherever its files lay.
      agreement: Share of the labelled pixels on which student and teacher agree; None without a
        teacher.
      history: The lines of metrics.jsonl.
    """

    method: str
    role: Role
    seed: int
    steps: int | None
    learning_rate: float | None
    miou: float
    pixel_accuracy: float
    class_iou: Sequence[float]
    parameters: int
    seconds: float | None
    images_per_second: float | None
    step_seconds: float | None = None
    step_processor_seconds: float | None = None
    step_flops: float | None = None
    step_bytes: float | None = None
    config_fingerprint: str | None = None
    agreement: float | None = None
    history: Sequence[Mapping[str, Any]] = ()

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one metric; NaN where the file holds `null`."""
        records = [record for record in self.history if name in record]
        values = [math.nan if record[name] is None else record[name] for record in records]
        return [record["step"] for record in records], values


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """One picture for the prediction panels.

    Attributes:
      image: `[H, W, 3]` uint8.
      label: `[H, W]` uint8, 255 where ignored.
      predictions: `[H, W]` uint8 for each network to show, in order.
    """

    image: np.ndarray
    label: np.ndarray
    predictions: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that the report shows.

    Attributes:
      title: What was compared or trained.
      subtitle: One sentence: data, networks, budget.
      split: The split that the metrics of the runs are measured on.
      runs: In the order of the table; a single one is a report about that run.
      class_names: `K` names.
      palette: `[K, 3]` uint8.
      examples: For the prediction panels.
      config: The config as text.
      versions: Of the packages and the hardware, by name.
      command: What to type to have this again.
      remarks: Lines on how settings were chosen, and on runs that diverged.
      builds_on: Of a method, the one that it is with something added.
    """

    title: str
    subtitle: str
    split: str
    runs: Sequence[RunSummary]
    class_names: Sequence[str]
    palette: np.ndarray
    examples: Sequence[Example] = ()
    config: str = ""
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    command: str = ""
    remarks: Sequence[str] = ()
    builds_on: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def base(self, result: "MethodResult") -> "MethodResult | None":
        """The results of the method that `result` builds on, where there are any."""
        base = self.builds_on.get(result.method)
        return next((other for other in self.methods() if other.method == base), None)

    def methods(self) -> list["MethodResult"]:
        """The runs by method: teachers, then plain students, then distilled ones."""
        grouped: dict[tuple[Role, str], list[RunSummary]] = {}
        for run in self.runs:
            grouped.setdefault((run.role, run.method), []).append(run)
        order: tuple[Role, ...] = ("teacher", "plain", "distilled")
        return [
            MethodResult(method=method, role=role, runs=runs)
            for (role, method), runs in sorted(grouped.items(), key=lambda x: order.index(x[0][0]))
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodResult:
    """The runs of one method, which differ in their seed."""

    method: str
    role: Role
    runs: Sequence[RunSummary]

    @property
    def miou(self) -> float:
        """Mean over the seeds."""
        return self.mean("miou")

    @property
    def miou_deviation(self) -> float | None:
        """Sample standard deviation over the seeds; None for a single one."""
        mious = [run.miou for run in self.runs]
        return statistics.stdev(mious) if len(mious) > 1 else None

    @property
    def class_iou(self) -> np.ndarray:
        """`[K]`: mean over the seeds that have the class, NaN where none has it."""
        iou = np.ma.masked_invalid([run.class_iou for run in self.runs])
        return iou.mean(axis=0).filled(np.nan)

    def series(self, name: str) -> list[tuple[list[int], list[float]]]:
        """`RunSummary.series` of each seed that has logged the metric."""
        return [(steps, values) for steps, values in (r.series(name) for r in self.runs) if steps]

    def mean(self, field: str) -> float:
        """Mean over the seeds of a number of `RunSummary`; NaN where a seed has none."""
        values = [getattr(run, field) for run in self.runs]
        return math.nan if None in values else statistics.fmean(values)


def teacher_of(methods: Sequence[MethodResult]) -> MethodResult | None:
    """The teacher, where its own scores are known."""
    return next((result for result in methods if result.role == "teacher"), None)


def plain_student(methods: Sequence[MethodResult]) -> MethodResult | None:
    """The student that gains are counted from."""
    return next((result for result in methods if result.role == "plain"), None)


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
