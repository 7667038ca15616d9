"""Figures of a training: curves, bars per class, label maps in colour.

Charts are `matplotlib.figure.Figure`s about as wide as a phone, so that they are legible there and
can stand side by side on a desk. Ink, rules and colours are readable on white; `svg` makes a chart
follow the light or dark page that it stands in.
"""

import io
import itertools
import math
import re
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

INK = "#1b1f24"
RULE = "#d8dce1"

# The first ones are told apart with any of the common colour-vision deficiencies; each has a
# contrast above 3:1 on white as well as on near-black.
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
TEACHER_COLOR = "#7d8590"  # grey: the reference, not one of the contestants
GAIN, LOSS = COLORS[:2]  # better and worse than the plain student

IGNORED_GREY = (128, 128, 128)
_CURVE_POINTS = 100  # more would not be told apart at the width of a chart
WIDTH = 4.6  # inches
# Of samples: pixels of the longer side of an image, and the longer side by the shorter one.
_MAX_SIDE, _MAX_RATIO = 1024, 3

Curve = tuple[Sequence[float], Sequence[float]]
"""Steps and the values at them."""

STYLE: dict[Any, Any] = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "text.parse_math": False,  # names are the user's: a dollar sign in one is a dollar sign
    "xtick.color": INK,
    "ytick.color": INK,
    "font.size": 9.5,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: selectable, and in the page's own font
    "svg.hashsalt": "kdjax",  # the same chart gives the same bytes
}


def method_colors(
    methods: Iterable[str], teacher: str | None = None, plain: str | None = None
) -> dict[str, str]:
    """A colour for each method, the same in every chart; grey for the teacher, ink for the plain
    student where others are compared with it."""
    palette = itertools.cycle(COLORS)
    references = {teacher: TEACHER_COLOR, plain: INK}
    return {method: references.get(method) or next(palette) for method in dict.fromkeys(methods)}


@matplotlib.rc_context(STYLE)
def curves(
    series: Mapping[str, Sequence[Curve]],
    title: str,
    colors: Mapping[str, str] | None = None,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Learning curves: each seed as a faint line, the mean of a method's seeds as a strong one.

    Args:
      series: For each method one curve per seed. A curve of more than 100 points is
        averaged in equal stretches.
      title: What the values are, with their unit.
      colors: From `method_colors`.
      limits: Of the values, where several charts are to be compared.
    """
    colors = colors or method_colors(series)
    figure = Figure(figsize=(WIDTH, 2.7), layout="constrained")
    axes = figure.add_subplot()
    for method, seeds in series.items():
        if len(seeds) > 1:
            for curve in seeds:
                axes.plot(*_condensed(curve), color=colors[method], lw=0.9, alpha=0.4)
        steps, values = _condensed(_mean_curve(seeds))
        marker = "o" if len(steps) <= 25 else None
        axes.plot(steps, values, color=colors[method], marker=marker, markersize=3.5)
    axes.set_xlabel("step")
    axes.set_title(title, loc="left", fontsize="medium", fontweight="bold")
    axes.set_xlim(left=0)
    if limits:
        axes.set_ylim(limits)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    if len(series) > 1:
        _legend(figure, {method: colors[method] for method in series}, "outside lower left")
    return figure


@matplotlib.rc_context(STYLE)
def class_iou_bars(
    iou: Mapping[str, ArrayLike],
    class_names: Sequence[str],
    colors: Mapping[str, str] | None = None,
) -> Figure:
    """Horizontal bars of each class's IoU in percent, one per method.

    Args:
      iou: For each method the IoU of the `K` classes, 0 to 1. NaN, a class that neither the
        labels nor the predictions hold, is written as absent and not drawn as zero.
      class_names: The `K` names.
      colors: From `method_colors`.
    """
    colors = colors or method_colors(iou)
    thickness = 0.8 / len(iou)  # of the room of one class
    room = max(0.24, 0.11 * len(iou) + 0.08)  # inches per class
    figure = Figure(figsize=(WIDTH, 0.6 + room * len(class_names)), layout="constrained")
    axes = figure.add_subplot()
    classes = np.arange(len(class_names))
    for place, (method, values) in enumerate(iou.items()):
        percent = 100 * np.asarray(values, float)
        rows = classes + (place - (len(iou) - 1) / 2) * thickness
        axes.barh(rows, np.nan_to_num(percent), 0.88 * thickness, color=colors[method])
        for row in rows[np.isnan(percent)]:
            axes.text(0.8, row, "absent", va="center", fontsize=6.5, style="italic")
    axes.set(xlabel="IoU (%)", xlim=(0, 100), ylim=(len(class_names) - 0.5, -0.5))
    axes.set_yticks(classes, class_names)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    if len(iou) > 1:
        _legend(figure, {method: colors[method] for method in iou}, "outside upper left")
    return figure


@matplotlib.rc_context(STYLE)
def svg(figure: Figure) -> str:
    """The figure as an `<svg>` element to put into an HTML page.

    Ink becomes the page's text colour and rules its `--rule`, so that the chart follows light and
    dark. The element names nothing outside itself.
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


def colorize(label: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Label map to colours.

    Args:
      label: `[H, W]` uint8, class numbers.
      palette: `[K, 3]` uint8.

    Returns:
      `[H, W, 3]` uint8. What is not a class, such as the ignored 255, is grey.
    """
    return full_palette(palette)[label]


def full_palette(palette: np.ndarray) -> np.ndarray:
    """The palette `[K, 3]` with grey for all other values a pixel can have: `[256, 3]` uint8."""
    full = np.full((256, 3), IGNORED_GREY, np.uint8)
    full[: len(palette)] = palette
    return full


def panel_image(
    image: np.ndarray,
    label: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    palette: np.ndarray,
) -> np.ndarray:
    """Image, label and predictions side by side, for TensorBoard.

    Args:
      image: `[H, W, 3]` uint8.
      label: `[H, W]` uint8.
      predictions: Of each network, in the order to show: `[H, W]` uint8.
      palette: `[K, 3]` uint8.

    Returns:
      `[H, (2 + n) W + 4 (1 + n), 3]` uint8, with white gaps.
    """
    gap = np.full((image.shape[0], 4, 3), 255, np.uint8)
    tiles = [image, *(colorize(labels, palette) for labels in (label, *predictions.values()))]
    with_gaps = itertools.chain.from_iterable((gap, tile) for tile in tiles)
    return np.concatenate(list(with_gaps)[1:], axis=1)


@matplotlib.rc_context(STYLE)
def samples(
    examples: Sequence[Mapping[str, Any]], class_names: Sequence[str], palette: np.ndarray
) -> Figure:
    """Draws labelled images, a row each: the image, its label in colors, and the classes' names.

    Large images are thinned, and very tall or very wide ones are squeezed, so that an image of any
    size takes a picture of bounded size.

    Args:
      examples: At least one, each of `image` `[H, W, 3]` and `label` `[H, W]`, both uint8;
        further label maps by title, the same titles in each, as `predictions`.
      class_names: The `K` names, of which those in the label maps are shown.
      palette: `[K, 3]` uint8. What is ignored is white, since grey may be a class.
    """
    colors = np.full((256, 3), 255, np.uint8)
    colors[: len(palette)] = palette
    titles = ["label", *examples[0].get("predictions", ())]
    maps = [[e["label"], *e.get("predictions", {}).values()] for e in examples]
    ratios = [len(e["label"]) / e["label"].shape[1] for e in examples]
    heights = [WIDTH / 2 * min(max(ratio, 1 / _MAX_RATIO), _MAX_RATIO) for ratio in ratios]
    size = WIDTH / 2 * (1 + len(titles)), sum(heights)
    figure = Figure(figsize=size, dpi=160, facecolor="white", layout="constrained")
    grid = figure.subplots(len(examples), 1 + len(titles), squeeze=False, height_ratios=heights)
    for row, example, labels, ratio, height in zip(
        grid, examples, maps, ratios, heights, strict=True
    ):
        step = 1 + max(example["label"].shape) // _MAX_SIDE
        thinned = [pixels[::step, ::step] for pixels in (example["image"], *labels)]
        for axes, pixels in zip(row, [thinned[0], *(colors[m] for m in thinned[1:])], strict=True):
            axes.imshow(pixels, aspect=height / (WIDTH / 2 * ratio))
            axes.set_axis_off()
    if len(titles) > 1:
        for axes, title in zip(grid[0], ["image", *titles], strict=True):
            axes.set_title(title, fontsize="small")
    present = np.unique(np.concatenate([m.ravel() for labels in maps for m in labels])).tolist()
    named = {
        name: "#" + bytes(colors[i]).hex() for i, name in enumerate(class_names) if i in present
    }
    if named:
        _legend(figure, named, "outside lower left")
    return figure


def _legend(figure: Figure, colors: Mapping[str, str], place: str) -> None:
    """Names beside the chart, in rows as long as its width allows."""
    names = list(colors)
    columns = next(
        n for n in range(len(names), 0, -1) if n == 1 or _legend_width(names, n) <= WIDTH
    )
    figure.set_figheight(figure.get_figheight() + 0.2 * math.ceil(len(names) / columns))
    # Matplotlib fills a legend by columns; people read by rows.
    names = [name for column in range(columns) for name in names[column::columns]]
    figure.legend(
        handles=[Patch(color=colors[name]) for name in names],
        labels=names,
        loc=place,
        ncols=columns,
        handlelength=0.9,
        handleheight=0.7,
        columnspacing=1.4,
        borderpad=0,
    )


def _legend_width(names: Sequence[str], columns: int) -> float:
    """About the inches that a legend of so many columns takes."""
    longest = [max(map(len, names[column::columns])) for column in range(columns)]
    return sum(0.4 + 0.08 * length for length in longest)


def _condensed(curve: Curve) -> np.ndarray:
    """`[2, n]`: at most `_CURVE_POINTS` points, each the mean of an equal stretch of the curve."""
    points = np.stack(curve).astype(float)
    number = points.shape[1]
    if number <= _CURVE_POINTS:
        return points
    stretches = np.array_split(points, number // math.ceil(number / _CURVE_POINTS), axis=1)
    return np.stack([stretch.mean(axis=1) for stretch in stretches], axis=1)


def _mean_curve(seeds: Sequence[Curve]) -> Curve:
    """The mean over the seeds, at the steps that all of them have."""
    by_step = [dict(zip(*curve, strict=True)) for curve in seeds]
    common = [step for step in by_step[0] if all(step in seed for seed in by_step)]
    return common, [float(np.mean([seed[step] for seed in by_step])) for step in common]
