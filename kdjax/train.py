"""Trains one network: a teacher, a plain student, or (with terms in its config) a taught one.

python -m kdjax.train --config configs/X.py --workdir DIR [--config.key=value ...]

`--profile 20:25` traces these steps into DIR/profile, for TensorBoard and https://ui.perfetto.dev.
"""

from absl import flags

from kdjax import command, processes
from kdjax import config as configuration
from kdjax.config import Config
from kdjax.distillation import need_teacher
from kdjax.experiments import environment, reports
from kdjax.experiments.images import Images
from kdjax.experiments.run import train
from kdjax.experiments.workdir import Workdir
from kdjax.reporting.report import write_report
from kdjax.training import profiling
from kdjax.training.interruption import Interruption

_CONFIG = configuration.define_flag()
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run is written; one that is there is continued.", required=True
)
_PROFILE = flags.DEFINE_string("profile", None, "Steps to trace, as 20:25.")
_PROCESSES = processes.define_flags()


def main(argv: list[str]) -> None:
    """Trains, or continues, and writes the report."""
    del argv
    config = configuration.from_flag(_CONFIG)
    profiled = profiling.steps_of(_PROFILE.value, config.steps) if _PROFILE.value else None
    processes.join(_PROCESSES)
    environment.enable_compilation_cache()
    files = Workdir(_WORKDIR.value)
    method = " + ".join(config.terms) if config.terms else "plain student"
    train(
        config,
        _WORKDIR.value,
        label="train",
        method=method,
        role="taught" if config.terms else "plain",
        profiled_steps=profiled,
    )
    with Interruption() as interruption:
        processes.lead(lambda: _report(config, files, method))
        interruption.check(f"the report {files.report} is written")


def _report(config: Config, files: Workdir, method: str) -> None:
    panels = {"student": str(files.student)}
    if need_teacher(config.terms):
        panels = {"teacher": config.teacher.checkpoint, **panels}
    report = reports.make_report(
        config,
        Images(config.data),
        [files],
        panels,
        title=f"{config.student.name} on {config.data.name}",
        subtitle=f"{method}, {config.steps} steps of {config.data.batch_size} images",
    )
    write_report(files.report, report)
    print(f"train: student {files.student}\ntrain: report {files.report}")


if __name__ == "__main__":
    command.run(main, resumes=True)
