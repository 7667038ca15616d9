"""Compares methods: trains a teacher once, then the plain student and each method over its seeds.

python -m kdjax.compare --config configs/X.py --workdir DIR [--seeds 0,1,2] [--parallel 4]
"""

import dataclasses

from absl import flags

from kdjax import command, processes
from kdjax import config as configuration
from kdjax.config import Config
from kdjax.errors import UserError
from kdjax.experiments import environment, reports
from kdjax.experiments.comparison import TEACHER, Comparison, compare
from kdjax.experiments.images import Images
from kdjax.experiments.workdir import Workdir
from kdjax.reporting.report import write_report, write_results
from kdjax.reporting.runs import write_runs
from kdjax.reporting.tables import note, text_table
from kdjax.training.interruption import Interruption

_CONFIG = configuration.define_flag()
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Where the runs are written; what is done there is not done again.",
    required=True,
)
_SEEDS = flags.DEFINE_list("seeds", None, "Seeds, as 0,1,2; by default those of the config.")
_PARALLEL = flags.DEFINE_integer(
    "parallel", 1, "Runs at once, each with its share of the accelerators, or else of the cores.", 1
)
_PROCESSES = processes.define_flags()


def main(argv: list[str]) -> None:
    """Trains what is missing, prints the tables and writes the report."""
    del argv
    config = configuration.from_flag(_CONFIG)
    processes.join(_PROCESSES)
    environment.enable_compilation_cache()
    seeds = config.compare.seeds if _SEEDS.value is None else _integers(_SEEDS.value)
    comparison = compare(config, _WORKDIR.value, seeds, _PARALLEL.value)
    with Interruption() as interruption:
        processes.lead(lambda: _report(config, comparison, len(seeds)))
        interruption.check("the report is written")


def _report(config: Config, comparison: Comparison, seeds: int) -> None:
    runs = comparison.runs
    panels = {TEACHER: config.teacher.checkpoint or str(runs[0].student)}
    panels |= {name: str(files.student) for name, files in comparison.students.items()}
    report = reports.make_report(
        config,
        Images(config.data),
        runs,
        panels,
        title=f"Distillation on {config.data.name}",
        subtitle=(
            f"{config.teacher.name} of width {config.teacher.width} teaches {config.student.name} "
            f"of width {config.student.width}; {config.steps} steps of {config.data.batch_size} "
            f"images each, {seeds} seed{'s' if seeds > 1 else ''}"
        ),
        remarks=comparison.notes,
    )
    path = Workdir(_WORKDIR.value).report
    write_report(path, report)
    write_results(path.parent, report)
    groups = [f"{report.split}/{group}" for group in config.data.test_groups]
    splits = dict.fromkeys(filter(None, (config.data.val_split, report.split, *groups)))
    summaries = {split: [run.summary(split) for run in runs] for split in splits}
    write_runs(path.parent / "runs.csv", summaries, report.class_names)
    for split in (report.split, *groups):
        print(f"\n{split}\n{text_table(dataclasses.replace(report, runs=summaries[split]))}")
    print(f"\n{note(report)}")
    if comparison.notes:
        print("\n" + "\n".join(comparison.notes))
    print(f"\nreport: {path}, with results.md, results.csv and runs.csv beside it")


def _integers(values: list[str]) -> tuple[int, ...]:
    try:
        return tuple(int(value) for value in values)
    except ValueError:
        raise UserError(f"--seeds is {','.join(values)}; give whole numbers, as 0,1,2") from None


if __name__ == "__main__":
    command.run(main, resumes=True)
