"""`kdjax.train`."""

import dataclasses
import os
from collections.abc import Sequence

from etils import epath

from kdjax import config as configuration
from kdjax.config import Config, RunOptions
from kdjax.data.interface import SegmentationSet
from kdjax.distillation import need_teacher
from kdjax.experiment import run as runs
from kdjax.experiment.report import make_report, predict_panels
from kdjax.experiment.result import RunResult
from kdjax.experiment.run import Run, TrainedRun
from kdjax.experiment.workdir import Workdir
from kdjax.reporting.report import examples_png, write_report
from kdjax.reporting.writers import Writer
from kdjax.teachers.loading import open_images
from kdjax.training.loop import Interruption
from kdjax.utils import processes
from kdjax.utils.files import write_atomically


def train(
    config: Config | RunOptions | str,
    workdir: epath.PathLike,
    *,
    data: SegmentationSet | None = None,
    writers: Sequence[Writer] = (),
    overwrite: bool = False,
    profile: tuple[int, int] | None = None,
) -> RunResult:
    """Trains the student of a config: a teacher, a plain student, or a distilled student.

    Afterwards, `workdir` holds the student as a network checkpoint, its scores, the log, and a
    report. The same call continues a run that was stopped, and returns the result of a finished run
    at once. Notebooks show a progress bar. Signals are handled in the main thread only.

        config = kdjax.default_config()
        config.steps = 500
        result = kdjax.train(config, "runs/first")
        result.scores["val"].miou

    Args:
      config: a config from `kdjax.default_config`, or the path of a config file.
      workdir: the directory of the run, local or `gs://`.
      data: a `kdjax.data.Dataset` in place of the set that `config.data.name` names.
      writers: further writers of what is logged. The caller closes them.
      overwrite: start again if there is a run, finished or not. Files that kdjax wrote there are
        removed after everything else has been checked; other files never.
      profile: the first and the last step to trace into `profile/`, for TensorBoard and Perfetto.

    Raises:
      UserError: for a mistake in the config, the data, or the directory, before anything is
        written, and if another run is active in the directory.
      Diverged: a `UserError`, if the loss is no longer finite. The last checkpoint is kept.
      Preempted: if the process was asked to stop. The work is saved.
    """
    options = configuration.read(config, data)
    files = Workdir(os.fspath(workdir))
    run = Run(
        options,
        files,
        name="train",
        method=" + ".join(options.terms) or "plain student",
        role="distilled" if options.terms else "plain",
    )
    trained = runs.train_run(
        run,
        data=data,
        writers=writers,
        overwrite=overwrite,
        profiled_steps=profile,
        extend=True,
    )
    result = RunResult(files.path)
    with Interruption() as interruption:
        processes.lead(lambda: _report(run, data, trained))
        interruption.check(f"the report {files.report} is written")
    return result


def _report(run: Run, data: SegmentationSet | None, trained: TrainedRun | None) -> None:
    options, files = run.options, run.files
    if files.report.exists():
        return
    # None if an earlier process ended before it wrote the report.
    if trained is None:
        panels = {"student": str(files.student)}
        if need_teacher(options.terms) and not options.teacher.logits:
            panels = {"teacher": options.teacher.checkpoint, **panels}
        images = open_images(options, data)
        trained = TrainedRun(images, *predict_panels(options, images, panels, files))
    report = make_report(
        options,
        trained.images,
        [files],
        trained.examples,
        title=f"{options.student.name} on {options.data.name}",
        subtitle=f"{run.method}, {options.steps} steps of {options.data.batch_size} images",
        call=f'kdjax.train(config, "{files.path}")',
    )
    report = dataclasses.replace(report, inspected=trained.inspected)
    if report.examples:
        write_atomically(files.examples, examples_png(report))
    write_report(files.report, report)
