"""What a finished run, and a set of them, hands to the tables and the report."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

Role = Literal["teacher", "plain", "taught"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One trained network. Metrics are shares of one, 0 to 1.

    Attributes:
        method: The row of the table that the run belongs to; runs of a method differ in `seed`.
        role: A teacher, a student trained without one, or a taught student.
        steps: Training steps; None for a network that was given, as are the next and the times.
        learning_rate: The highest of the schedule.
        class_iou: `[K]`; NaN where neither labels nor predictions hold the class.
        parameters: Of the network alone, without adapters.
        seconds: Wall time of the training.
        step_seconds: Of a step, the median of what was logged.
        step_processor_seconds: On the processor, of all threads of the first process; likewise.
        images_per_second: Likewise.
        step_flops: Multiplications and additions of a step on all devices; None where not known.
        step_bytes: What a device holds during a step; likewise.
        config_fingerprint: Of what was trained, wherever its files lay.
        agreement: Share of the pixels on which student and teacher agree; None without a teacher.
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
        """The runs by method: teachers, then plain students, then taught ones."""
        grouped: dict[tuple[Role, str], list[RunSummary]] = {}
        for run in self.runs:
            grouped.setdefault((run.role, run.method), []).append(run)
        order: tuple[Role, ...] = ("teacher", "plain", "taught")
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
