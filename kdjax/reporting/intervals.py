"""What seeds say about a difference: intervals by Student's t, over all classes and of each class.

Student and method of one seed share their initial weights and batches, so that their difference
varies less than each of them; intervals are those of the mean of these differences.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy import special

from kdjax.reporting import figures
from kdjax.reporting.figures import GAIN, LOSS
from kdjax.reporting.results import MethodResult, Report, plain_student

LEVEL = 0.95
_FENCE = 3  # interquartile ranges beyond the quartiles, where Tukey calls a value far out


class Estimate(NamedTuple):
    """A value, NaN where it is not known, and the ends of its interval, None where it has none."""

    value: float
    low: float | None = None
    high: float | None = None


NOTHING = Estimate(float("nan"))


def mean_interval(values: np.ndarray, level: float = LEVEL) -> tuple[Any, Any]:
    """Ends of the confidence interval of a mean, by Student's t.

    Args:
      values: `[..., n]`, at least two in the last axis, normally distributed.
      level: how often such an interval covers the true mean.
    """
    mean = np.mean(values, axis=-1)
    n = values.shape[-1]
    reach = _quantile(n, level) * np.std(values, axis=-1, ddof=1) / np.sqrt(n)
    return mean - reach, mean + reach


def ratio_interval(above: np.ndarray, below: np.ndarray, level: float = LEVEL) -> tuple[Any, Any]:
    """Ends of Fieller's confidence interval of a ratio of two means, of paired values.

    It holds every ratio r for which the interval of the mean of `above - r * below` covers zero.
    (Fieller, "Some problems in interval estimation", J. R. Stat. Soc. B 16, 1954.)

    Args:
      above: `[..., n]`, at least two in the last axis.
      below: likewise.
      level: as for `mean_interval`.

    Returns:
      NaN twice where the mean of `below` cannot be told from zero: the ratio has no bounds then.
    """
    n = above.shape[-1]
    factor = _quantile(n, level) ** 2 / n
    top, bottom = np.mean(above, axis=-1), np.mean(below, axis=-1)
    mixed = (above - top[..., None]) * (below - bottom[..., None])
    # The ends solve a r^2 - 2 b r + c = 0.
    a = bottom**2 - factor * np.var(below, axis=-1, ddof=1)
    b = top * bottom - factor * np.sum(mixed, axis=-1) / (n - 1)
    c = top**2 - factor * np.var(above, axis=-1, ddof=1)
    a = np.where(a > 0, a, np.nan)
    root = np.sqrt(np.maximum(b**2 - a * c, 0))
    return (b - root) / a, (b + root) / a


def without_far_out(values: np.ndarray) -> np.ndarray:
    """Those of `values` `[n]` that are known and not far out: one diverged run must set no scale.

    (Tukey, "Exploratory Data Analysis", 1977: beyond the outer fences.)
    """
    known = values[np.isfinite(values)]
    if not len(known):
        return known
    first, third = np.percentile(known, [25, 75])
    fence = _FENCE * (third - first)
    return known[(first - fence <= known) & (known <= third + fence)]


def gain(result: MethodResult, over: MethodResult | None) -> Estimate:
    """Gain in mIoU over another one, as the plain student: the mean over the seeds that both have.

    Without an interval for a teacher (which shares no seed with a student) and for a single seed.
    """
    if over is None or result is over:
        return NOTHING
    values, baseline = _paired(result, over)
    if result.role == "teacher" or not len(values):
        return Estimate(result.miou - over.miou)
    return _mean(values - baseline)


def class_gains(result: MethodResult, plain: MethodResult) -> list[Estimate]:
    """Gain of each class in IoU, as `gain`; of a class, over the seeds in which both have it."""
    if result.role == "teacher":
        return [Estimate(float(value)) for value in result.class_iou - plain.class_iou]
    values, baseline = _paired(result, plain, "class_iou")
    if not len(values):
        return [NOTHING] * len(plain.class_iou)
    return [_mean(column[np.isfinite(column)]) for column in (values - baseline).T]


def seeds_mean(result: MethodResult) -> Estimate:
    """MIoU of a method, and the interval of its mean over the seeds."""
    return _mean(np.array([run.miou for run in result.runs]))


def gap_closed(
    result: MethodResult, plain: MethodResult | None, teacher: MethodResult | None
) -> Estimate:
    """Share of the way from the plain student's mIoU to the teacher's, by seed; see `gain`.

    The teacher is taken as it is: how it would come out with other seeds is left out of account.
    No number where the teacher is not above the plain student.
    """
    if plain is None or teacher is None or result.role != "distilled":
        return NOTHING
    values, baseline = _paired(result, plain)
    gaps = teacher.miou - baseline
    if not len(values) or not np.mean(gaps) > 0:
        return NOTHING
    share = float(np.mean(values - baseline) / np.mean(gaps))
    return _estimate(share, *_bounds(ratio_interval, values - baseline, gaps))


def paired_gains(result: MethodResult, plain: MethodResult) -> list[float]:
    """Gain in mIoU of each seed that both have."""
    values, baseline = _paired(result, plain)
    return (values - baseline).tolist()


def _paired(
    result: MethodResult, plain: MethodResult, field: str = "miou"
) -> tuple[np.ndarray, np.ndarray]:
    """A metric of each at the seeds that both have, `[n]`, or `[n, K]` of one by class."""
    values, baseline = (
        {run.seed: getattr(run, field) for run in method.runs} for method in (result, plain)
    )
    seeds = [seed for seed in values if seed in baseline]
    return np.array([values[seed] for seed in seeds]), np.array([baseline[seed] for seed in seeds])


def _mean(values: np.ndarray) -> Estimate:
    if not len(values):
        return NOTHING
    return _estimate(float(np.mean(values)), *_bounds(mean_interval, values))


def _bounds(interval: Any, *values: np.ndarray) -> tuple[float, float]:
    if len(values[0]) < 2:
        return float("nan"), float("nan")
    low, high = interval(*values)
    return float(low), float(high)


def _estimate(value: float, low: float, high: float) -> Estimate:
    return Estimate(value) if np.isnan(low) else Estimate(value, low, high)


def _quantile(n: int, level: float) -> float:
    # As `scipy.stats.t.ppf`, without the half second in which that module is imported.
    return float(special.stdtrit(n - 1, (1 + level) / 2))


@matplotlib.rc_context(figures.STYLE)
def interval_dots(
    estimates: Mapping[str, Estimate],
    seeds: Mapping[str, Sequence[float]],
    title: str,
    colors: Mapping[str, str],
    *,
    line_at: float,
) -> Figure:
    """One row per method: a dot at its value, a bar over its interval, a small mark per seed.

    The axis shows what is not far out, so that one diverged run does not make all others alike.
    A bar that reaches further is cut; a dot further out is an arrow at the edge with its number.

    Args:
      estimates: Of each method, shares of one, drawn in percent. A row without a value is empty.
      seeds: The values that each estimate is the mean of.
      title: What the values are, with their unit.
      colors: From `figures.method_colors`.
      line_at: Where the plain student is; a line through all rows.
    """
    height = 0.75 + 0.26 * len(estimates)
    figure = Figure(figsize=(figures.WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    values = [estimate.value for estimate in estimates.values()]
    values += [line_at, *(value for one in seeds.values() for value in one)]
    low, high = _limits(100 * np.array(values))
    axes.axvline(100 * line_at, color=figures.INK, lw=0.9, ls=(0, (4, 3)))
    for row, (method, estimate) in enumerate(estimates.items()):
        color, value = colors[method], 100 * estimate.value
        if estimate.low is not None and estimate.high is not None:
            ends = np.clip([100 * estimate.low, 100 * estimate.high], low, high)
            axes.plot(ends, [row, row], color=color, lw=5, alpha=0.3, solid_capstyle="butt")
        marks = 100 * np.array(seeds[method])
        axes.plot(marks, [row] * len(marks), "|", color=color, markersize=8, markeredgewidth=1.1)
        if low <= value <= high:
            axes.plot(value, row, "o", color=color, markersize=6)
        elif not np.isnan(value):
            _arrow(axes, row, value, color, right=value > high)
    axes.set_title(title, loc="left", fontsize="medium", fontweight="bold")
    axes.set(xlim=(low, high), ylim=(len(estimates) - 0.5, -0.5))
    axes.set_yticks(range(len(estimates)), list(estimates))
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    return figure


def _limits(values: np.ndarray) -> tuple[float, float]:
    """Ends of the axis: of all values but those far out, with some room."""
    inside = without_far_out(values)
    room = max(0.08 * (inside.max() - inside.min()), 0.5)
    return float(inside.min() - room), float(inside.max() + room)


def _arrow(axes: Axes, row: int, value: float, color: str, *, right: bool) -> None:
    """Points out of the axis to a value, and names it."""
    edge, sign = (1, -1) if right else (0, 1)
    across = axes.get_yaxis_transform()  # x in shares of the axis, y in rows
    axes.plot(edge + sign * 0.012, row, ">" if right else "<", color=color, transform=across)
    axes.text(
        edge + sign * 0.035,
        row,
        f"{value:.1f}",
        transform=across,
        ha="right" if right else "left",
        va="center",
        fontsize="small",
    )


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
    if plain is None or not any(result.role == "distilled" for result in others):
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
