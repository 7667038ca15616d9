"""`kdjax.train`, what it returns, and the report of runs."""

import base64
import functools
import html
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from matplotlib.figure import Figure

from kdjax import config as configuration
from kdjax.config import Config
from kdjax.data.images import Images
from kdjax.data.interface import SegmentationSet
from kdjax.distillation import need_teacher
from kdjax.evaluation.evaluator import TrainedNetwork, predict_examples
from kdjax.experiment import run
from kdjax.experiment.evaluate import SplitScores, html_table, percent
from kdjax.experiment.run import TrainedRun
from kdjax.experiment.scoring import with_predictions
from kdjax.experiment.workdir import Workdir
from kdjax.models import serialization
from kdjax.reporting import figures
from kdjax.reporting.report import examples_png, run_figures, write_report
from kdjax.reporting.results import Example, Report
from kdjax.reporting.writers import Writer
from kdjax.teachers.loading import ordered_teacher
from kdjax.training.loop import Interruption
from kdjax.utils import environment, processes
from kdjax.utils.errors import UserError
from kdjax.utils.files import write_atomically


def make_report(
    config: Config,
    images: Images,
    runs: Sequence[Workdir],
    examples: Sequence[Example],
    *,
    title: str,
    subtitle: str,
    call: str = "",
    remarks: Sequence[str] = (),
) -> Report:
    """Gathers the report of finished runs.

    Args:
      config: what was asked for.
      images: the data set of the runs.
      runs: their workdirs.
      examples: those that are shown, with their predictions.
      title: heading of the report.
      subtitle: one sentence on data, networks and budget.
      call: what has this again, where Python called it and no command runs.
      remarks: lines on how settings were chosen, and on runs that diverged.
    """
    split = config.data.test_split or config.data.val_split
    return Report(
        title=title,
        subtitle=subtitle,
        split=split,
        runs=[run.summary(split) for run in runs],
        class_names=images.class_names,
        palette=images.palette,
        examples=examples,
        config=configuration.to_json(config),
        versions=environment.describe(),
        remarks=remarks,
        builds_on=dict(config.compare.builds_on),
        command=_command() or call,
    )


def predict_panels(config: Config, images: Images, panels: Mapping[str, str]) -> list[Example]:
    """A few labelled examples with the predictions of networks.

    Args:
      config: what was asked for.
      images: the data set.
      panels: column title -> network checkpoint. Networks that score other classes are left out.
    """
    examples, options = images.panel_examples(), configuration.read(config)
    predictions: dict[str, Sequence[np.ndarray]] = {}
    for name, path in panels.items():
        network = ordered_teacher(TrainedNetwork.load(path), options.teacher, images.class_names)
        if network.info.num_classes == images.num_classes:
            predictions[name] = predict_examples(
                functools.partial(network.predictor, network.variables),
                examples,
                config.data.eval_batch_size,
            )
    return with_predictions(examples, predictions)


def _command() -> str | None:
    """Returns the command that runs, with its flags, or None outside of kdjax's commands."""
    if not sys.argv[0].startswith("kdjax "):
        return None
    return f"python -m {' '.join(sys.argv)}"


_SHOWN = 2  # charts in a notebook; `figures` has all


class RunResult:
    """A finished run, read from its workdir when it is asked for.

    In a notebook it shows its scores, its curves and what it predicts for a few examples.

    Args:
      workdir: of a finished run.

    Attributes:
      files: what lies where in the workdir, as `files.report` and `files.metrics`.

    Raises:
      UserError: when no finished run is there.
    """

    def __init__(self, workdir: epath.PathLike):
        self.files = Workdir(workdir)
        if not self.files.result.exists():
            raise UserError(f"{workdir}: no finished run here (result.json is missing)")

    @functools.cached_property
    def scores(self) -> Mapping[str, SplitScores]:
        """Scores by split, and by group of the test split as "test/group"."""
        found = self._values["scores"]
        return {split: SplitScores.of(found[split], self._class_names) for split in found}

    @property
    def history(self) -> list[dict[str, Any]]:
        """What was logged: a dict for each time, oldest first, with its `step`.

        `pandas.DataFrame(result.history)` makes columns of it.
        """
        return self.files.history()

    @functools.cached_property
    def student(self) -> TrainedNetwork:
        """The trained network, as `kdjax.load` returns it."""
        return TrainedNetwork.load(str(self.files.student))

    def figures(self) -> dict[str, Figure]:
        """Charts by title: mIoU on validation, the loss and its terms, the IoU of every class."""
        split = next(reversed([split for split in self.scores if "/" not in split]))
        return run_figures(self.files.summary(split), self._class_names)

    def to_dict(self) -> dict[str, Any]:
        """What `result.json` in the workdir holds, and where that is; None stands for NaN."""
        return {"workdir": str(self.files.path), **self._values}

    @functools.cached_property
    def _values(self) -> dict[str, Any]:
        return self.files.read_result()

    @functools.cached_property
    def _class_names(self) -> Sequence[str]:
        info = serialization.info_in(self.files.student)
        if info is None:
            raise UserError(f"{self.files.student}: the student of the run is missing")
        return info.class_names

    def __repr__(self) -> str:
        scored = ", ".join(f"{split} mIoU {percent(s.miou)} %" for split, s in self.scores.items())
        return f"RunResult({str(self.files.path)!r}: {scored})"

    def _repr_html_(self) -> str:
        rows = [
            (split, percent(s.miou), percent(s.pixel_accuracy), percent(s.agreement))
            for split, s in self.scores.items()
        ]
        shown = [html_table(("split", "mIoU %", "pixel acc. %", "agreement %"), rows)]
        shown += [figures.svg(chart) for chart in [*self.figures().values()][:_SHOWN]]
        if self.files.examples.exists():
            picture = base64.b64encode(self.files.examples.read_bytes()).decode()
            shown.append(f'<img alt="examples" src="data:image/png;base64,{picture}">')
        shown.append(f"<p>{html.escape(str(self.files.report))}</p>")
        # The charts' rules have the page's colour, which a notebook does not name.
        return f'<div style="--rule: {figures.RULE}">{"".join(shown)}</div>'


def train(
    config: Config | str,
    workdir: epath.PathLike,
    *,
    data: SegmentationSet | None = None,
    writers: Sequence[Writer] = (),
    overwrite: bool = False,
    profile: tuple[int, int] | None = None,
) -> RunResult:
    """Trains the student of a config: a teacher, a plain student, or with terms a distilled one.

    The workdir then holds the student as a network checkpoint, its scores, what was logged and a
    report. A run that was stopped is continued by the same call, and that of a finished run returns
    its result at once. In a notebook progress is a bar; in another thread than the main one,
    signals are left as they are.

        config = kdjax.default_config()
        config.steps = 500
        result = kdjax.train(config, "runs/first")
        result.scores["val"].miou

    Args:
      config: as `kdjax.default_config` makes it, or the path of a config file.
      workdir: where everything is written, local or `gs://`.
      data: examples of one's own, as a `kdjax.data.Dataset`, in place of the set that
        `config.data.name` names.
      writers: take what is logged, beside the workdir's own; whoever made them closes them.
      overwrite: begin anew where a run is, finished or not. What kdjax wrote there is removed
        when all else is checked, and nothing else ever.
      profile: the first and the last step to trace into `profile/`, for TensorBoard and Perfetto.

    Raises:
      UserError: for a mistake in the config, the data or the workdir; nothing is written then.
        Also while another run is at work in the workdir.
      Diverged: a `UserError`, when the loss is no longer a number; the last checkpoint is kept.
      Preempted: when the process was asked to stop; what was done is saved.
    """
    asked = configuration.checked(config, data)
    workdir = os.fspath(workdir)
    method = " + ".join(asked.terms) if asked.terms else "plain student"
    trained = run.train(
        asked,
        workdir,
        name="train",
        method=method,
        role="distilled" if asked.terms else "plain",
        data=data,
        writers=writers,
        overwrite=overwrite,
        profiled_steps=profile,
        extend=True,
    )
    result = RunResult(workdir)
    with Interruption() as interruption:
        processes.lead(lambda: _report(asked, result.files, method, data, trained))
        interruption.check(f"the report {result.files.report} is written")
    return result


def _report(
    config: Config,
    files: Workdir,
    method: str,
    data: SegmentationSet | None,
    trained: TrainedRun | None,
) -> None:
    if files.report.exists():
        return
    # Where the run ended in an earlier process, which did not come to the report.
    if trained is None:
        panels = {"student": str(files.student)}
        if need_teacher(config.terms) and not config.teacher.logits:
            panels = {"teacher": config.teacher.checkpoint, **panels}
        images = Images(configuration.read(config).data, data)
        trained = TrainedRun(images, predict_panels(config, images, panels))
    report = make_report(
        config,
        trained.images,
        [files],
        trained.examples,
        title=f"{config.student.name} on {config.data.name}",
        subtitle=f"{method}, {config.steps} steps of {config.data.batch_size} images",
        call=f'kdjax.train(config, "{files.path}")',
    )
    write_atomically(files.examples, examples_png(report))
    write_report(files.report, report)
