"""Compares methods: trains a teacher once, then the plain student and each method over its seeds.

python -m kdjax.compare --config configs/X.py --workdir DIR [--seeds 0,1,2]
"""

import dataclasses

from absl import flags

from kdjax import command, processes
from kdjax import config as configuration
from kdjax.errors import UserError
from kdjax.experiments import environment, reports
from kdjax.experiments.comparison import PLAIN, TEACHER, compare, in_order
from kdjax.experiments.images import Images
from kdjax.experiments.workdir import Workdir
from kdjax.reporting.report import write_report
from kdjax.reporting.tables import text_table

_CONFIG = configuration.define_flag()
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Where the runs are written; what is done there is not done again.",
    required=True,
)
_SEEDS = flags.DEFINE_list("seeds", None, "Seeds, as 0,1,2; by default those of the config.")
_PROCESSES = processes.define_flags()


def main(argv: list[str]) -> None:
    """Trains what is missing, prints the table and writes the report."""
    del argv
    config = configuration.from_flag(_CONFIG)
    processes.join(_PROCESSES)
    environment.enable_compilation_cache()
    seeds = config.compare.seeds if _SEEDS.value is None else _integers(_SEEDS.value)
    runs = compare(config, _WORKDIR.value, seeds)
    if not processes.leads():
        return

    panels = {TEACHER: config.teacher.checkpoint or str(runs[0].student)}
    for name, terms in in_order(config.compare.methods):
        panels[name if terms else PLAIN] = str(
            Workdir(_WORKDIR.value).path / name / f"seed{seeds[0]}"
        )
    report = reports.make_report(
        config,
        Images(config.data),
        runs,
        panels,
        title=f"Distillation on {config.data.name}",
        subtitle=(
            f"{config.teacher.name} of width {config.teacher.width} teaches {config.student.name} "
            f"of width {config.student.width}; {config.steps} steps of {config.data.batch_size} "
            f"images each, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
        ),
    )
    path = Workdir(_WORKDIR.value).report
    write_report(path, report)
    for split in [report.split, *(f"{report.split}/{group}" for group in config.data.test_groups)]:
        scores = dataclasses.replace(report, runs=[run.summary(split) for run in runs])
        print(f"\n{split}\n{text_table(scores)}")
    print(f"\nreport: {path}")


def _integers(values: list[str]) -> tuple[int, ...]:
    try:
        return tuple(int(value) for value in values)
    except ValueError:
        raise UserError(f"--seeds is {','.join(values)}; give whole numbers, as 0,1,2") from None


if __name__ == "__main__":
    command.run(main)
