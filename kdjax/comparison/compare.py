"""`kdjax.compare` and its result."""

import dataclasses
import html
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from kdjax import config as configuration
from kdjax.comparison.runs import TEACHER, Comparison, run_comparison
from kdjax.config import Config, RunOptions
from kdjax.data.interface import SegmentationSet
from kdjax.data.run_data import RunData
from kdjax.experiment.report import make_report, predict_panels
from kdjax.experiment.result import RunResult
from kdjax.experiment.scores import html_table
from kdjax.experiment.workdir import Workdir
from kdjax.models.options import StudentOptions, TeacherOptions
from kdjax.reporting.costs import verdict
from kdjax.reporting.report import write_report, write_results
from kdjax.reporting.results import Report, write_runs
from kdjax.reporting.tables import method_rows, method_table, note, text_table
from kdjax.teachers.loading import open_images
from kdjax.training.loop import Interruption
from kdjax.utils import imports, processes
from kdjax.utils.files import to_json


@dataclasses.dataclass(frozen=True)
class ComparisonResult:
    """The result of a comparison. It prints as tables, and a notebook shows its main table.

    Attributes:
      report: the HTML page, in the same directory as `results.md`, `results.csv`, and `runs.csv`.
      students: the finished run of each method's first seed, by the method's name in the tables.
      choices: the settings that each method tried on validation, and the choice among them.
      notes: lines on these settings, on runs that diverged, and on longer plain students.
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

        Fractions and seconds are not rounded. A value is None if it is unknown.
        `pandas.DataFrame(result.table)` makes a table of it.
        """
        return method_rows(self._main)

    @property
    def verdict(self) -> str:
        """One sentence: which method is ahead of a plain student of equal cost."""
        return verdict(self._main.methods(), self._main.split)

    def to_dict(self) -> dict[str, Any]:
        """Returns the tables of all splits, choices, notes, and the path of the report.

        Everything is as in JSON: None stands for NaN.
        """
        values = {
            "split": self._main.split,
            "table": self.table,
            "splits": {split: method_rows(report) for split, report in self._splits.items()},
            "choices": [*self.choices],
            "verdict": self.verdict,
            "notes": [*self.notes],
            "report": str(self.report),
        }
        return json.loads(to_json(values))

    @property
    def _main(self) -> Report:
        return next(iter(self._splits.values()))

    def __str__(self) -> str:
        tables = [f"\n{split}\n{text_table(report)}" for split, report in self._splits.items()]
        notes = ["\n" + "\n".join(self.notes)] if self.notes else []
        files = f"\nreport: {self.report}, with results.md, results.csv and runs.csv beside it"
        judged = [f"\n{line}" for line in (note(self._main), self.verdict) if line]
        return "\n".join([*tables, *judged, *notes, files])

    def _repr_html_(self) -> str:
        table = method_table(self._main)
        lines = [note(self._main), self.verdict, *self.notes, str(self.report)]
        paragraphs = "".join(f"<p>{html.escape(line)}</p>" for line in lines if line)
        return html_table(table.header, table.texts()) + paragraphs


def compare(
    config: Config | RunOptions | str,
    workdir: epath.PathLike,
    *,
    data: SegmentationSet | None = None,
    parallel: int = 1,
    seeds: Sequence[int] | None = None,
) -> ComparisonResult:
    """Compares methods: trains a teacher once, then the plain student and each method.

    Finished runs in the workdir are kept, so that the same call continues a comparison, and methods
    and seeds can be added later.

        result = kdjax.compare("quickstart.py", "runs/quickstart")
        print(result)

    Args:
      config: from `kdjax.default_config`, with `config.compare.methods`, or the path of a config
        file.
      workdir: the directory of the runs, the tables, and the report.
      data: as for `kdjax.train`. With parallel runs, name it in the config instead.
      parallel: the number of runs at once, in processes that share the accelerators or else the
        cores.
      seeds: the seeds of the runs that are reported; by default `config.compare.seeds`.

    Raises:
      UserError: for a mistake in the config, a workdir with another comparison, or a workdir that
        another process uses.
      Preempted: if the process was asked to stop. The progress is saved.
      Transient: if every run that failed may succeed at the next try.
    """
    options = configuration.read(config, data)
    workdir = os.fspath(workdir)
    chosen = tuple(options.compare.seeds if seeds is None else seeds)
    found = run_comparison(options.to_config(), workdir, chosen, parallel, data)
    images = open_images(options, data)
    path = Workdir(workdir).report
    with Interruption() as interruption:
        reports = _reports(options, images, found, path, len(chosen))
        processes.lead(lambda: _write(options, images, found, reports, path))
        interruption.check("the report is written")
    # The main split is the test split, if there is one; its groups follow.
    main = options.data.test_split or options.data.val_split
    return ComparisonResult(
        report=path,
        students={name: RunResult(files.path) for name, files in found.students.items()},
        choices=[choice.to_dict() for choice in found.choices if choice.scores],
        notes=found.notes,
        _splits={
            split: report for split, report in reports.items() if split.partition("/")[0] == main
        },
    )


def _reports(
    options: RunOptions, images: RunData, found: Comparison, path: epath.Path, seeds: int
) -> dict[str, Report]:
    """Returns a report without examples for each split, and for each group of the test split."""
    teacher = "precomputed logits" if options.teacher.logits else _in_words(options.teacher)
    report = make_report(
        options,
        images,
        found.runs,
        [],
        title=f"Distillation on {options.data.name}",
        subtitle=(
            f"Student {_in_words(options.student)}, teacher {teacher}; {options.steps} steps of "
            f"{options.data.batch_size} images each, {seeds} seed{'s' if seeds > 1 else ''}"
        ),
        call=f'kdjax.compare(config, "{path.parent}")',
        remarks=found.notes,
    )
    main = options.data.test_split or options.data.val_split
    groups = [f"{main}/{group}" for group in options.data.test_groups]
    return {
        split: dataclasses.replace(
            report, split=split, runs=[run.summary(split) for run in found.runs]
        )
        for split in dict.fromkeys((options.data.val_split, main, *groups))
    }


def _in_words(network: StudentOptions | TeacherOptions) -> str:
    """Returns the name of a network and its width, which the user's own networks lack."""
    name = network.name or network.checkpoint
    known = network.name and imports.SEPARATOR not in network.name
    return f"{name} of width {network.width}" if known else name


def _write(
    options: RunOptions,
    images: RunData,
    found: Comparison,
    reports: Mapping[str, Report],
    path: epath.Path,
) -> None:
    networks = {name: str(files.student) for name, files in found.students.items()}
    if not options.teacher.logits:
        teacher = options.teacher.checkpoint or str(found.runs[0].student)
        networks = {TEACHER: teacher, **networks}
    main = reports[options.data.test_split or options.data.val_split]
    # The images to look at are those of the best student, in the run of its first seed.
    best = max(
        found.students.values(), key=lambda files: files.summary(main.split).miou, default=None
    )
    examples, inspected = predict_panels(options, images, networks, best)
    write_report(path, dataclasses.replace(main, examples=examples, inspected=inspected))
    write_results(path.parent, main)
    runs = {split: report.runs for split, report in reports.items()}
    write_runs(path.parent / "runs.csv", runs, main.class_names)
