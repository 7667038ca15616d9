"""Figure of a comparison: the mean of each method with its interval and its seeds."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kdjax.reporting import figures
from kdjax.reporting.intervals import Estimate, without_far_out


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
