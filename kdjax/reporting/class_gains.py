"""The heat map of a comparison: how much each class gains from each method."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from kdjax.reporting.figures import GAIN, LOSS
from kdjax.reporting.intervals import Estimate, class_gains, without_far_out
from kdjax.reporting.results import Report, plain_student

_STRONGEST = 0.7  # opacity of a colour under text that must stay legible, on white and on black


@dataclasses.dataclass(frozen=True)
class HeatCell:
    """A cell.

    Attributes:
        text: What a reader sees.
        key: What rows are sorted by; empty for what is not known.
        background: A CSS colour; empty for none.
        interval: The interval of the gain in words; empty where it has none.
        sure: The interval excludes zero.
    """

    text: str
    key: float | str
    background: str = ""
    interval: str = ""
    sure: bool = False


@dataclasses.dataclass(frozen=True)
class HeatMap:
    """Rows are classes; columns are the plain student's IoU and the gains of all others.

    Attributes:
        header: Of the columns; the first holds the names of the classes.
        rows: The cells after the name of each class.
        names: Of the classes.
        full: From how many points on a gain has the full colour.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[HeatCell]]
    names: Sequence[str]
    full: float

    @property
    def has_intervals(self) -> bool:
        """Whether some gain has one."""
        return any(cell.interval for row in self.rows for cell in row)


def heat_map(report: Report) -> HeatMap | None:
    """Gains per class over the plain student; None where there is nothing to compare.

    The teacher's have no colour: they say how much there is to gain.
    """
    methods = report.methods()
    plain = plain_student(methods)
    others = [result for result in methods if result is not plain]
    if plain is None or not any(result.role == "taught" for result in others):
        return None
    gains = {result.method: class_gains(result, plain) for result in others}
    students = [result.method for result in others if result.role != "teacher"]
    colored = np.array([estimate.value for method in students for estimate in gains[method]])
    full = 100 * float(np.max(np.abs(without_far_out(colored)), initial=0))
    rows = []
    for index, iou in enumerate(plain.class_iou):
        cells = [HeatCell("–", "") if math.isnan(iou) else HeatCell(f"{100 * iou:.1f}", iou)]
        for result in others:
            estimate = gains[result.method][index]
            cells.append(_cell(estimate, None if result.role == "teacher" else full))
        rows.append(cells)
    header = ["Class", f"{plain.method}, IoU %", *(result.method for result in others)]
    return HeatMap(header, rows, report.class_names, full)


def _cell(estimate: Estimate, full: float | None) -> HeatCell:
    value, low, high = (None if x is None else 100 * x for x in estimate)
    if value is None or math.isnan(value):
        return HeatCell("–", "")
    background = ""
    if full:
        rgb = " ".join(str(part) for part in bytes.fromhex((GAIN if value > 0 else LOSS)[1:]))
        background = f"rgb({rgb} / {100 * _STRONGEST * min(abs(value) / full, 1):.0f}%)"
    text = f"{round(value, 1) + 0:+.1f}"  # not -0.0
    if low is None or high is None:
        return HeatCell(text, value, background)
    interval = f"[{low:+.1f}, {high:+.1f}]"
    return HeatCell(text, value, background, interval, low > 0 or high < 0)
