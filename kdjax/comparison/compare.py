"""`kdjax.compare` and what it returns."""

import dataclasses
import html
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from kdjax import config as configuration
from kdjax.comparison import sweep
from kdjax.comparison.sweep import TEACHER, Comparison
from kdjax.config import Config, RunOptions
from kdjax.data.images import Images
from kdjax.data.interface import SegmentationSet
from kdjax.experiment.report import make_report, predict_panels
from kdjax.experiment.result import RunResult
from kdjax.experiment.scores import html_table
from kdjax.experiment.workdir import Workdir
from kdjax.models.options import StudentOptions, TeacherOptions
from kdjax.reporting.report import write_report, write_results
from kdjax.reporting.results import Report, write_runs
from kdjax.reporting.tables import method_rows, method_table, note, text_table
from kdjax.training.loop import Interruption
from kdjax.utils import imports, processes
from kdjax.utils.files import to_json


@dataclasses.dataclass(frozen=True)
class ComparisonResult:
    """What a comparison came to. In a notebook it shows its table, and printed all its tables.

    Attributes:
      report: the HTML page; `results.md`, `results.csv` and `runs.csv` lie beside it.
      students: the finished run of each method's first seed, by what tables call the method.
      choices: what was tried on validation for each method and what was taken.
      notes: lines on what was tried, and on runs that diverged.
    """

    report: epath.Path
    students: Mapping[str, RunResult]
    choices: Sequence[Mapping[str, Any]]
    notes: Sequence[str]
    # By split, and by group of the test split as "test/group"; the first is that of the report.
    _splits: Mapping[str, Report]

    @property
    def table(self) -> list[dict[str, Any]]:
        """A row for each method: means over its seeds, gain over the plain student, costs.

        Shares of one and seconds, not rounded; None where not known.
        `pandas.DataFrame(result.table)` makes a table of it.
        """
        return method_rows(self._measured)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON holds it: None stands for NaN.

        The table, those of every split, the choices, the notes and where the report is.
        """
        values = {
            "split": self._measured.split,
            "table": self.table,
            "splits": {split: method_rows(report) for split, report in self._splits.items()},
            "choices": [*self.choices],
            "notes": [*self.notes],
            "report": str(self.report),
        }
        return json.loads(to_json(values))

    @property
    def _measured(self) -> Report:
        return next(iter(self._splits.values()))

    def __str__(self) -> str:
        tables = [f"\n{split}\n{text_table(report)}" for split, report in self._splits.items()]
        said = [*tables, f"\n{note(self._measured)}"]
        if self.notes:
            said.append("\n" + "\n".join(self.notes))
        beside = "with results.md, results.csv and runs.csv beside it"
        return "\n".join([*said, f"\nreport: {self.report}, {beside}"])

    def _repr_html_(self) -> str:
        table = method_table(self._measured)
        said = [note(self._measured), *self.notes, str(self.report)]
        lines = "".join(f"<p>{html.escape(line)}</p>" for line in said if line)
        return html_table(table.header, table.rows) + lines


def compare(
    config: Config | RunOptions | str,
    workdir: epath.PathLike,
    *,
    data: SegmentationSet | None = None,
    parallel: int = 1,
    seeds: Sequence[int] | None = None,
) -> ComparisonResult:
    """Compares methods: trains a teacher once, then the plain student and each method.

    What is done in the workdir is not done again, so that the same call continues, and methods and
    seeds may join later.

        result = kdjax.compare("quickstart.py", "runs/quickstart")
        print(result)

    Args:
      config: as `kdjax.default_config` makes it, with `config.compare.methods`, or the path of a
        config file.
      workdir: where the runs, the tables and the report are written.
      data: as `kdjax.train` takes it; with several runs at once, name it in the config instead.
      parallel: runs at once, in processes that share the accelerators, or else the cores.
      seeds: those of the runs that are reported; None for `config.compare.seeds`.

    Raises:
      UserError: for a mistake in the config, or a workdir of another comparison; also while
        another process is at work in the workdir.
      Preempted: when the process was asked to stop; what was done is saved.
      Transient: when what did not end well may be tried again.
    """
    options = configuration.read(config, data)
    asked = options.to_config()
    workdir = os.fspath(workdir)
    chosen = tuple(options.compare.seeds if seeds is None else seeds)
    found = sweep.run_sweep(asked, workdir, chosen, parallel, data)
    images = Images(options.data, data)
    path = Workdir(workdir).report
    with Interruption() as interruption:
        report = _report(options, images, found, path, len(chosen))
        data_splits = (options.data.val_split, *_reported(options, report))
        splits = {
            split: dataclasses.replace(
                report, split=split, runs=[run.summary(split) for run in found.runs]
            )
            for split in dict.fromkeys(filter(None, data_splits))
        }
        processes.lead(lambda: _write(options, images, found, report, splits, path))
        interruption.check("the report is written")
    return ComparisonResult(
        report=path,
        students={name: RunResult(files.path) for name, files in found.students.items()},
        choices=[choice.to_dict() for choice in found.choices if choice.scores],
        notes=found.notes,
        _splits={split: splits[split] for split in _reported(options, report)},
    )


def _report(
    options: RunOptions, images: Images, found: Comparison, path: epath.Path, seeds: int
) -> Report:
    """The report without examples, which one process alone predicts."""
    teacher = f"{_in_words(options.teacher)} teaches"
    if options.teacher.logits:
        teacher = "logits from elsewhere teach"
    return make_report(
        options,
        images,
        found.runs,
        [],
        title=f"Distillation on {options.data.name}",
        subtitle=(
            f"{teacher} {_in_words(options.student)}; {options.steps} "
            f"steps of {options.data.batch_size} images each, {seeds} "
            f"seed{'s' if seeds > 1 else ''}"
        ),
        call=f'kdjax.compare(config, "{path.parent}")',
        remarks=found.notes,
    )


def _in_words(network: StudentOptions | TeacherOptions) -> str:
    """A network of a config; those of a user's own have no width that kdjax knows of."""
    name = network.name or network.checkpoint
    known = network.name and imports.SEPARATOR not in network.name
    return f"{name} of width {network.width}" if known else name


def _reported(options: RunOptions, report: Report) -> list[str]:
    """The split of the report, and its groups."""
    return [report.split, *(f"{report.split}/{group}" for group in options.data.test_groups)]


def _predicted(found: Comparison) -> dict[str, list[np.ndarray]]:
    """Label maps of the examples by network, of those that this process trained or taught with."""
    label_maps = {}
    for name, examples in found.predicted.items():
        label_maps[name] = [example.predictions["student"] for example in examples]
        if "teacher" in examples[0].predictions:
            label_maps[TEACHER] = [example.predictions["teacher"] for example in examples]
    return label_maps


def _write(
    options: RunOptions,
    images: Images,
    found: Comparison,
    report: Report,
    splits: Mapping[str, Report],
    path: epath.Path,
) -> None:
    panels = {}
    if not options.teacher.logits:
        panels[TEACHER] = options.teacher.checkpoint or str(found.runs[0].student)
    panels |= {name: str(files.student) for name, files in found.students.items()}
    examples = predict_panels(options, images, panels, _predicted(found))
    write_report(path, dataclasses.replace(report, examples=examples))
    write_results(path.parent, report)
    runs = {split: measured.runs for split, measured in splits.items()}
    write_runs(path.parent / "runs.csv", runs, report.class_names)
