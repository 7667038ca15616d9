"""The results of finished runs, grouped by method, and their CSV file."""

import csv
import dataclasses
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from etils import epath

from kdjax.utils.files import csv_text, to_csv, write_atomically

Role = Literal["teacher", "plain", "distilled"]
_ROLES: tuple[Role, ...] = ("teacher", "plain", "distilled")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One trained network. Metrics are fractions, 0 to 1.

    Attributes:
      method: the row of the table that the run belongs to. Runs of a method differ in `seed`.
      role: a teacher, a student trained without a teacher, or a distilled student.
      steps: training steps; None for a network that kdjax did not train. The learning rate and
        the times are then None too.
      learning_rate: the highest of the schedule.
      class_iou: `[K]`; NaN if neither labels nor predictions contain the class.
      parameters: of the network without adapters.
      seconds: wall time of the training, over all starts of the run.
      step_seconds: the median of the logged times of a step, without the first step of a start.
      step_processor_seconds: processor time of a step in all threads of the first process.
      images_per_second: the median of the logged values.
      step_flops: operations of a step on all devices; None if unknown.
      step_bytes: memory of a device during a step; None if unknown.
      config_fingerprint: the fingerprint of the config, without the paths of its files.
      agreement: fraction of the labeled pixels on which student and teacher agree; None without
        a teacher.
      precision: of two classes, that of the second one; None for other numbers of classes.
      recall: the same for the recall.
      boundary_iou: the mean over the classes; None if it was not measured.
      boundary_f1: the same for boundary F1.
      platform: "cpu", "gpu", or "tpu"; None if unknown.
      history: the lines of metrics.jsonl.
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
    precision: float | None = None
    recall: float | None = None
    boundary_iou: float | None = None
    boundary_f1: float | None = None
    platform: str | None = None
    history: Sequence[Mapping[str, Any]] = ()

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Returns the steps and values of a logged metric; NaN if the file contains `null`."""
        records = [record for record in self.history if name in record]
        values = [math.nan if record[name] is None else record[name] for record in records]
        return [record["step"] for record in records], values


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodResult:
    """The runs of one method, which differ in their seed."""

    method: str
    role: Role
    runs: Sequence[RunSummary]

    @property
    def miou(self) -> float:
        """The mean over the seeds."""
        return self.mean("miou")

    @property
    def miou_deviation(self) -> float | None:
        """The sample standard deviation over the seeds; None for a single seed."""
        mious = [run.miou for run in self.runs]
        return statistics.stdev(mious) if len(mious) > 1 else None

    @property
    def class_iou(self) -> np.ndarray:
        """`[K]`: the mean over the seeds that have the class; NaN if none has it."""
        iou = np.ma.masked_invalid([run.class_iou for run in self.runs])
        return iou.mean(axis=0).filled(np.nan)

    def series(self, name: str) -> list[tuple[list[int], list[float]]]:
        """Returns `RunSummary.series` of each seed that logged the metric."""
        return [(steps, values) for steps, values in (r.series(name) for r in self.runs) if steps]

    def mean(self, field: str) -> float:
        """Returns the mean of a field over the seeds; NaN if a seed lacks it."""
        values = [getattr(run, field) for run in self.runs]
        return math.nan if None in values else statistics.fmean(values)


def by_method(runs: Iterable[RunSummary]) -> list[MethodResult]:
    """Groups runs by method: the teacher, then plain students, then distilled ones."""
    grouped: dict[tuple[Role, str], list[RunSummary]] = {}
    for run in runs:
        grouped.setdefault((run.role, run.method), []).append(run)
    return [
        MethodResult(method=method, role=role, runs=runs)
        for (role, method), runs in sorted(grouped.items(), key=lambda x: _ROLES.index(x[0][0]))
    ]


def teacher_of(methods: Sequence[MethodResult]) -> MethodResult | None:
    """Returns the teacher if its own scores are known."""
    return next((result for result in methods if result.role == "teacher"), None)


def plain_student(methods: Sequence[MethodResult]) -> MethodResult | None:
    """Returns the student that gains are measured against."""
    return next((result for result in methods if result.role == "plain"), None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """An image with its label and predictions.

    Attributes:
      image: `[H, W, 3]` uint8.
      label: `[H, W]` uint8, 255 where ignored.
      predictions: `[H, W]` uint8 of each network to show, in order.
    """

    image: np.ndarray
    label: np.ndarray
    predictions: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class InspectedImage:
    """An image to look at.

    Attributes:
      name: the name of the image.
      miou: the mean of the IoU over the classes in its label.
      disputed: the share of its labeled pixels where student and teacher agree on another class.
      example: the image with its label and predictions.
    """

    name: str
    miou: float
    disputed: float
    example: Example

    def describe(self) -> str:
        """Returns the name and both shares, for print."""
        line = f"{self.name}: mIoU {100 * self.miou:.1f} %"
        if self.disputed:
            line += f", student and teacher against the label on {100 * self.disputed:.1f} %"
        return line


class Inspected(NamedTuple):
    """The images to look at.

    Attributes:
      worst: those with the lowest mIoU, the lowest first.
      disputed: those where student and teacher agree against the label on the largest share of the
        pixels. Their labels may be wrong.
    """

    worst: Sequence[InspectedImage] = ()
    disputed: Sequence[InspectedImage] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """The contents of a report.

    Attributes:
      title: what was compared or trained.
      subtitle: one sentence: data, networks, budget.
      split: the split on which the metrics of the runs were measured.
      runs: in the order of the table.
      class_names: `K` names.
      palette: `[K, 3]` uint8.
      examples: with the predictions to show.
      inspected: the images to look at.
      config: the config as text.
      versions: of the packages and the hardware, by name.
      command: the command or call that makes the same report again.
      remarks: lines on how settings were chosen, and on runs that diverged.
      builds_on: by method, the method that it extends.
    """

    title: str
    subtitle: str
    split: str
    runs: Sequence[RunSummary]
    class_names: Sequence[str]
    palette: np.ndarray
    examples: Sequence[Example] = ()
    inspected: Inspected = dataclasses.field(default_factory=Inspected)
    config: str = ""
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    command: str = ""
    remarks: Sequence[str] = ()
    builds_on: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def methods(self) -> list[MethodResult]:
        """Returns the runs grouped by method."""
        return by_method(self.runs)

    def base(self, result: MethodResult) -> MethodResult | None:
        """Returns the results of the method that `result` builds on, if there are any."""
        base = self.builds_on.get(result.method)
        return next((other for other in self.methods() if other.method == base), None)


# The columns of runs.csv that do not depend on a split, and their types.
COLUMNS: dict[str, type] = {
    "method": str,
    "role": str,
    "seed": int,
    "steps": int,
    "platform": str,
    "config_fingerprint": str,
    "parameters": int,
    "learning_rate": float,
    "seconds": float,
    "step_seconds": float,
    "step_processor_seconds": float,
    "images_per_second": float,
    "step_flops": float,
    "step_bytes": float,
}
_SCORES = ("miou", "pixel_accuracy", "agreement")
# Scores that some runs lack.
OPTIONAL_SCORES = ("precision", "recall", "boundary_iou", "boundary_f1")


def write_runs(
    path: epath.PathLike, splits: Mapping[str, Sequence[RunSummary]], class_names: Sequence[str]
) -> None:
    """Writes runs as CSV.

    Args:
      path: the file.
      splits: by split, the same runs in the same order with their scores on the split.
      class_names: `K` names.
    """
    summaries = [run for runs in splits.values() for run in runs]
    measured = [
        name
        for name in (*_SCORES, *OPTIONAL_SCORES)
        if name in _SCORES or any(getattr(run, name) is not None for run in summaries)
    ]
    scores = [*measured, *(f"iou {name}" for name in class_names)]
    rows = [[*COLUMNS, *(f"{split} {score}" for split in splits for score in scores)]]
    for summaries in zip(*splits.values(), strict=True):
        row = [getattr(summaries[0], column) for column in COLUMNS]
        for run in summaries:
            row += [*(getattr(run, score) for score in measured), *run.class_iou]
        rows.append(row)
    write_atomically(path, to_csv(rows))


def read_runs(path: epath.PathLike) -> dict[str, list[RunSummary]]:
    """Reads a file of `write_runs`: by split, the runs with their scores on the split.

    A field is None if the file lacks its column.
    """
    rows = [
        {csv_text(name): csv_text(text) for name, text in row.items()}
        for row in csv.DictReader(io.StringIO(epath.Path(path).read_text()))
    ]
    # A class may have the name of a score.
    splits = [
        name.removesuffix(" miou")
        for name in rows[0]
        if name.endswith(" miou") and " iou " not in name
    ]
    return {split: [_summary(row, split) for row in rows] for split in splits}


def _summary(row: Mapping[str, str], split: str) -> RunSummary:
    fields: dict[str, Any] = {
        column: kind(text) if (text := row.get(column)) else None
        for column, kind in COLUMNS.items()
    }
    scores: dict[str, Any] = {name: _score(row.get(f"{split} {name}")) for name in _SCORES}
    for name in ("agreement", *OPTIONAL_SCORES):
        text = row.get(f"{split} {name}")
        scores[name] = float(text) if text else None
    iou = [_score(text) for name, text in row.items() if name.startswith(f"{split} iou ")]
    return RunSummary(**fields, **scores, class_iou=iou)


def _score(text: str | None) -> float:
    return float(text) if text else math.nan
