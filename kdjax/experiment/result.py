"""The result of `kdjax.train`."""

import base64
import functools
import html
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from matplotlib.figure import Figure

from kdjax.evaluation.evaluator import TrainedNetwork
from kdjax.experiment.scores import SplitScores, html_table, percent
from kdjax.experiment.workdir import Workdir
from kdjax.models import serialization
from kdjax.reporting import figures
from kdjax.reporting.report import run_figures
from kdjax.utils.classes import iou_of_object
from kdjax.utils.errors import UserError

_SHOWN = 2  # charts in a notebook; `figures` returns all


class RunResult:
    """A finished run, read from its directory on demand.

    A notebook shows its scores, curves, and predictions for a few examples.

    Args:
      workdir: the directory of a finished run.

    Attributes:
      files: the paths in the directory, such as `files.report` and `files.metrics`.

    Raises:
      UserError: if the directory holds no finished run.
    """

    def __init__(self, workdir: epath.PathLike):
        self.files = Workdir(workdir)
        if not self.files.result.exists():
            raise UserError(f"{workdir}: no finished run here (result.json is missing)")

    @functools.cached_property
    def scores(self) -> Mapping[str, SplitScores]:
        """The scores by split, and by group of the test split as "test/group"."""
        found = self._values["scores"]
        return {split: SplitScores.of(found[split], self._class_names) for split in found}

    @property
    def losses(self) -> Mapping[str, float]:
        """The loss by split, of a student without class scores. Empty for other students."""
        return self._values.get("losses", {})

    @property
    def history(self) -> list[dict[str, Any]]:
        """The log: a dict for each line, oldest first, with its `step`.

        `pandas.DataFrame(result.history)` turns it into columns.
        """
        return self.files.history()

    @functools.cached_property
    def student(self) -> TrainedNetwork:
        """The trained network, as `kdjax.load` returns it."""
        return TrainedNetwork.load(str(self.files.student))

    def figures(self) -> dict[str, Figure]:
        """Returns charts by title: validation mIoU, the loss and its terms, and IoU by class.

        A student without class scores has a chart of the loss on the validation split instead.
        """
        split = next(reversed([split for split in self.scores if "/" not in split]), "")
        return run_figures(self.files.summary(split), self._class_names)

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of `result.json`, and the directory. None stands for NaN."""
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
        judged = [
            f"{split} mIoU {percent(s.miou)} %{iou_of_object([*s.iou], s.iou.values())}"
            for split, s in self.scores.items()
        ]
        judged += [f"{split} loss {loss:.4f}" for split, loss in self.losses.items()]
        return f"RunResult({str(self.files.path)!r}: {', '.join(judged)})"

    def _repr_html_(self) -> str:
        rows = [
            (split, percent(s.miou), percent(s.pixel_accuracy), percent(s.agreement))
            for split, s in self.scores.items()
        ]
        shown = [html_table(("split", "mIoU %", "pixel acc. %", "agreement %"), rows)]
        if self.losses:
            losses = [(split, f"{loss:.4f}") for split, loss in self.losses.items()]
            shown = [html_table(("split", "loss"), losses)]
        shown += [figures.svg(chart) for chart in [*self.figures().values()][:_SHOWN]]
        if self.files.examples.exists():
            picture = base64.b64encode(self.files.examples.read_bytes()).decode()
            shown.append(f'<img alt="examples" src="data:image/png;base64,{picture}">')
        shown.append(f"<p>{html.escape(str(self.files.report))}</p>")
        # The charts take the color of their rules from the page, and a notebook does not set it.
        return f'<div style="--rule: {figures.RULE}">{"".join(shown)}</div>'
