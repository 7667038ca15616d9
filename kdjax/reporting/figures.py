"""Charts: learning curves, IoU by class, and intervals; and pictures of labeled images.

Figures are about as wide as a phone screen, so that two or three fit side by side on a desktop.
"""

import io
import itertools
import math
import re
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from kdjax.reporting.intervals import Estimate, without_outliers
from kdjax.reporting.pictures import css_color, full_palette

INK = "#1b1f24"
RULE = "#d8dce1"

# Each has a contrast above 3:1 on white and on near-black. The first ones can be distinguished with
# any common color-vision deficiency.
COLORS = (
    "#2a7fc4",  # blue
    "#d55e00",  # vermilion
    "#0d9171",  # bluish green
    "#b9629a",  # reddish purple
    "#b07d00",  # ochre
    "#8a6fd1",  # violet
    "#1a93b0",  # cyan
    "#97694b",  # brown
    "#6f8a1c",  # olive
)

TEACHER_COLOR = "#7d8590"  # gray

WIDTH = 4.6  # inches
_CURVE_POINTS = 100
# Of a labeled image: the longer side in pixels, and the ratio of its sides.
_MAX_SIDE, _MAX_RATIO = 1024, 3

Curve = tuple[Sequence[float], Sequence[float]]
"""Steps and the values at them."""


class CostCurve(NamedTuple):
    """A mean metric by cost, `[n]`, and the ends of its interval, None for a single seed."""

    cost: np.ndarray
    mean: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None


STYLE: dict[Any, Any] = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "axes.titleweight": "bold",
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "text.parse_math": False,  # names may contain a dollar sign
    "xtick.color": INK,
    "ytick.color": INK,
    "font.size": 9.5,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "svg.fonttype": "none",  # text can be selected, and has the font of the page
    "svg.hashsalt": "kdjax",  # the same chart gives the same bytes
}


def method_colors(
    methods: Iterable[str], teacher: str | None = None, plain: str | None = None
) -> dict[str, str]:
    """Returns a color for each method: gray for the teacher, dark for the plain student."""
    palette = itertools.cycle(COLORS)
    references = {teacher: TEACHER_COLOR, plain: INK}
    return {method: references.get(method) or next(palette) for method in dict.fromkeys(methods)}


@matplotlib.rc_context(STYLE)
def curves(
    series: Mapping[str, Sequence[Curve]], title: str, colors: Mapping[str, str] | None = None
) -> Figure:
    """Draws learning curves: each seed as a faint line, the mean of a method as a strong one.

    Args:
      series: for each method one curve per seed. Long curves are averaged over equal intervals.
      title: the metric and its unit.
      colors: from `method_colors`.
    """
    colors = colors or method_colors(series)
    figure, axes = _chart(2.7, title)
    for method, seeds in series.items():
        if len(seeds) > 1:
            for curve in seeds:
                axes.plot(*_condensed(curve), color=colors[method], lw=0.9, alpha=0.4)
        steps, values = _condensed(_mean_curve(seeds))
        marker = "o" if len(steps) <= 25 else None
        axes.plot(steps, values, color=colors[method], marker=marker, markersize=3.5)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    _finish_curves(figure, axes, "step", {method: colors[method] for method in series})
    return figure


@matplotlib.rc_context(STYLE)
def curves_by_cost(
    series: Mapping[str, CostCurve], title: str, unit: str, colors: Mapping[str, str]
) -> Figure:
    """Draws a metric against what training has cost so far, with its intervals over the seeds.

    Args:
      series: of each method, fractions, drawn in percent.
      title: the metric and its unit.
      unit: of the cost.
      colors: from `method_colors`.
    """
    figure, axes = _chart(2.7, title)
    for method, curve in series.items():
        if curve.low is not None and curve.high is not None:
            ends = 100 * curve.low, 100 * curve.high
            axes.fill_between(curve.cost, *ends, color=colors[method], alpha=0.15, lw=0)
        marker = "o" if len(curve.cost) <= 25 else None
        axes.plot(curve.cost, 100 * curve.mean, color=colors[method], marker=marker, markersize=3.5)
    _finish_curves(figure, axes, unit, {method: colors[method] for method in series})
    return figure


@matplotlib.rc_context(STYLE)
def class_iou_bars(iou: ArrayLike, class_names: Sequence[str], title: str) -> Figure:
    """Draws a bar for the IoU of each class.

    Args:
      iou: `[K]`, 0 to 1. NaN is labeled as absent and not drawn as zero.
      class_names: `K` names.
      title: of the chart.
    """
    percent = 100 * np.asarray(iou, float)
    figure, axes = _chart(0.6 + 0.24 * len(class_names), title)
    axes.barh(range(len(percent)), np.nan_to_num(percent), 0.7, color=COLORS[0])
    for row in np.flatnonzero(np.isnan(percent)).tolist():
        axes.text(0.8, row, "absent", va="center", fontsize=6.5, style="italic")
    axes.set_xlim(0, 100)
    _name_rows(axes, class_names)
    return figure


@matplotlib.rc_context(STYLE)
def interval_dots(
    estimates: Mapping[str, Estimate],
    seeds: Mapping[str, Sequence[float]],
    title: str,
    colors: Mapping[str, str],
    *,
    line_at: float,
) -> Figure:
    """Draws a row per method: a dot at its value, a bar over its interval, and a mark per seed.

    The axis leaves out outliers, so that one diverged run does not squeeze all others together. A
    bar that extends further is cut. A dot further out becomes an arrow with the value.

    Args:
      estimates: of each method, fractions, drawn in percent. A row without a value is empty.
      seeds: the values whose mean each estimate is.
      title: the metric and its unit.
      colors: from `method_colors`.
      line_at: the value of the plain student, drawn as a line through all rows.
    """
    figure, axes = _chart(0.75 + 0.26 * len(estimates), title)
    values = [estimate.value for estimate in estimates.values()]
    values += [line_at, *itertools.chain.from_iterable(seeds.values())]
    inside = without_outliers(100 * np.array(values))
    margin = max(0.08 * (inside.max() - inside.min()), 0.5)
    low, high = float(inside.min() - margin), float(inside.max() + margin)
    axes.axvline(100 * line_at, color=INK, lw=0.9, ls=(0, (4, 3)))
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
    axes.set_xlim(low, high)
    _name_rows(axes, list(estimates))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    return figure


def _arrow(axes: Axes, row: int, value: float, color: str, *, right: bool) -> None:
    """Draws an arrow at the edge of the axis toward a value outside, with the value."""
    edge, sign, side = (1, -1, "right") if right else (0, 1, "left")
    transform = axes.get_yaxis_transform()  # x as a fraction of the axis, y in rows
    axes.plot(edge + sign * 0.012, row, ">" if right else "<", color=color, transform=transform)
    place = {"ha": side, "va": "center", "fontsize": "small", "transform": transform}
    axes.text(edge + sign * 0.035, row, f"{value:.1f}", **place)


@matplotlib.rc_context(STYLE)
def svg(figure: Figure) -> str:
    """Returns the figure as an `<svg>` element for an HTML page.

    Ink gets the text color of the page and rules its `--rule`, so that the chart adapts to light
    and dark pages. The element refers to nothing outside itself.
    """
    text = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with warnings.catch_warnings():
        # The browser has the letters that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(text, format="svg", metadata=nothing)
    element = text.getvalue()
    element = element[element.index("<svg") :].strip()
    element = element.replace(INK, "currentColor").replace(RULE, "var(--rule)")
    # Several figures share a page, so their ids must differ.
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>f{zlib.crc32(element.encode()):x}-", element)


@matplotlib.rc_context(STYLE)
def samples(
    examples: Sequence[Mapping[str, Any]], class_names: Sequence[str], palette: np.ndarray
) -> Figure:
    """Draws labeled images, one per row: the image, its label in colors, and predictions.

    Large images are thinned, and very tall or very wide ones are squeezed, so that the figure has
    a bounded size.

    Args:
      examples: at least one, each with `image` `[H, W, 3]` and `label` `[H, W]`, both uint8, and
        perhaps with `predictions`: label maps by title, the same titles in each example.
      class_names: `K` names. The legend shows those in the label maps.
      palette: `[K, 3]` uint8. Ignored pixels are white, since gray may be the color of a class.
    """
    colors = full_palette(palette, other=255)
    rows = [
        {"image": e["image"], "label": e["label"], **e.get("predictions", {})} for e in examples
    ]
    sizes = [e["label"].shape for e in examples]
    ratios = [min(max(height / width, 1 / _MAX_RATIO), _MAX_RATIO) for height, width in sizes]
    size = WIDTH / 2 * len(rows[0]), WIDTH / 2 * sum(ratios) + 0.25  # for the titles
    figure = Figure(figsize=size, dpi=160, facecolor="white", layout="constrained")
    grid = figure.subplots(len(rows), len(rows[0]), squeeze=False, height_ratios=ratios)
    for line, row, ratio, (height, width) in zip(grid, rows, ratios, sizes, strict=True):
        step = 1 + max(height, width) // _MAX_SIDE
        for axes, (title, pixels) in zip(line, row.items(), strict=True):
            thinned = pixels[::step, ::step]
            shown = thinned if title == "image" else colors[thinned]
            axes.imshow(shown, aspect=ratio * width / height)
            axes.set_axis_off()
    for axes, title in zip(grid[0], rows[0], strict=True):
        axes.set_title(title, fontsize="small", fontweight="normal", loc="center")
    maps = [pixels for row in rows for title, pixels in row.items() if title != "image"]
    present = np.unique(np.concatenate([labels.ravel() for labels in maps])).tolist()
    named = {name: css_color(colors[i]) for i, name in enumerate(class_names) if i in present}
    if named:
        _legend(figure, named)
    return figure


def _chart(height: float, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    return figure, axes


def _finish_curves(figure: Figure, axes: Axes, unit: str, drawn: Mapping[str, str]) -> None:
    """Names the horizontal axis, which begins at 0, and the methods if there are several."""
    axes.set_xlabel(unit)
    axes.set_xlim(left=0)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    if len(drawn) > 1:
        _legend(figure, drawn)


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Makes the vertical axis one of named rows, from top to bottom."""
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)


def _legend(figure: Figure, colors: Mapping[str, str]) -> None:
    """Adds the names below the chart, in two columns."""
    figure.set_figheight(figure.get_figheight() + 0.2 * math.ceil(len(colors) / 2))
    figure.legend(
        handles=[Patch(color=color) for color in colors.values()],
        labels=list(colors),
        loc="outside lower left",
        ncols=2,
        handlelength=0.9,
        handleheight=0.7,
        borderpad=0,
    )


def _condensed(curve: Curve) -> np.ndarray:
    """Returns `[2, n]`: at most `_CURVE_POINTS` points, each the mean of an equal interval."""
    points = np.stack(curve).astype(float)
    number = points.shape[1]
    if number <= _CURVE_POINTS:
        return points
    parts = np.array_split(points, number // math.ceil(number / _CURVE_POINTS), axis=1)
    return np.stack([part.mean(axis=1) for part in parts], axis=1)


def _mean_curve(seeds: Sequence[Curve]) -> Curve:
    """Returns the mean over the seeds, at the steps that all of them have."""
    by_step = [dict(zip(*curve, strict=True)) for curve in seeds]
    common = [step for step in by_step[0] if all(step in seed for seed in by_step)]
    return common, [float(np.mean([seed[step] for seed in by_step])) for step in common]
