"""The report of a run or of a comparison: one HTML file that refers to no other file."""

import dataclasses
import io
import math
from collections.abc import Mapping, Sequence

import jinja2
import numpy as np
from etils import epath
from matplotlib.figure import Figure

from kdjax.reporting import costs, figures, intervals, tables
from kdjax.reporting.pictures import IGNORED_GRAY, css_color, label_uri, photo_uri
from kdjax.reporting.results import (
    Example,
    MethodResult,
    Report,
    RunSummary,
    by_method,
    plain_student,
    teacher_of,
)
from kdjax.utils.files import write_atomically

_MIOU, _LOSS = "val/miou", "train/loss"
_AGREEMENT = "val/agreement_miou"  # of images without labels
_HELD_OUT = "val/loss"  # of students without class scores
_JUDGED = (_MIOU, _AGREEMENT, _HELD_OUT, _LOSS)
# Costs, which are in the tables.
_NOT_DRAWN = {f"train/step_{name}" for name in ("seconds", "processor_seconds", "flops", "bytes")}
_MAX_CURVES = 5  # in one chart

_TITLES = {
    _MIOU: "mIoU on val (%)",
    _AGREEMENT: "mIoU against the teacher's labels on val (%)",
    _HELD_OUT: "loss on val",
    "train/images_per_second": "images/s",
}

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("kdjax.reporting", "."),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_report(path: epath.PathLike, report: Report) -> None:
    """Writes `report` as one self-contained HTML file."""
    methods = report.methods()
    teacher, plain, best = teacher_of(methods), plain_student(methods), _best_distilled(methods)
    distilled = [result.method for result in methods if result.role == "distilled"]
    colors = figures.method_colors(
        [result.method for result in methods],
        teacher and teacher.method,
        plain.method if plain and distilled else None,
    )
    drawn = _with_curves(methods)
    class_table, full_color = tables.class_table(report)
    examples = [_pictures(example, report.palette) for example in report.examples]
    text = _TEMPLATES.get_template("report.html").render(
        report=report,
        headline=_headline(report, methods),
        key_results=[result for result in (teacher, plain, best) if result],
        note=tables.note(report),
        verdict=costs.verdict(methods, report.split),
        method_table=tables.method_table(report),
        run_table=tables.method_table(report, by_seed=True),
        interval_charts=_interval_charts(report, methods, colors),
        curves=[*_cost_chart(drawn, colors), *_charts(drawn, _JUDGED, colors)],
        best_drawn=len(drawn) - 1 if len(drawn) < len(methods) else 0,
        other_curves=_charts(drawn, _logged(report.runs), colors),
        class_table=class_table,
        full_color=full_color,
        has_intervals=any(cell.interval for row in class_table.rows for cell in row),
        legend=_legend(report),
        examples=examples,
        inspected=_inspected(report),
        hidden={name for name in distilled if best and name != best.method},
    )
    write_atomically(path, text)


def write_results(directory: epath.PathLike, report: Report) -> None:
    """Writes the table of methods as `results.md` and, with unrounded numbers, `results.csv`."""
    directory = epath.Path(directory)
    text = f"# {report.title}\n\n{report.subtitle}. Measured on {report.split}.\n\n"
    text += tables.markdown_table(report) + "\n"
    if note := tables.note(report):
        text += f"\n{note}\n"
    if verdict := costs.verdict(report.methods(), report.split):
        text += f"\n{verdict}\n"
    if report.remarks:
        text += "\n" + "".join(f"- {line}\n" for line in report.remarks)
    write_atomically(directory / "results.md", text)
    write_atomically(directory / "results.csv", tables.csv_table(report))


def run_figures(run: RunSummary, class_names: Sequence[str]) -> dict[str, Figure]:
    """Returns the charts of a run by title: mIoU on val, what training logs, IoU by class."""
    colors = figures.method_colors([run.method])
    drawn = _curves(by_method([run]), [*_JUDGED, *_logged([run])], colors)
    if not len(run.class_iou):
        return drawn
    title = "IoU by class (%)"
    return drawn | {title: figures.class_iou_bars(run.class_iou, class_names, title)}


def examples_png(report: Report) -> bytes:
    """Draws the examples of a report: image, label, and predictions, one per row."""
    examples = [dataclasses.asdict(example) for example in report.examples]
    buffer = io.BytesIO()
    figures.samples(examples, report.class_names, report.palette).savefig(buffer, format="png")
    return buffer.getvalue()


def _headline(report: Report, methods: Sequence[MethodResult]) -> str:
    """Returns the result in one sentence that claims no more than the seeds allow."""
    plain, best = plain_student(methods), _best_distilled(methods)
    if plain is None or best is None or math.isnan(plain.miou):
        result = best or plain or methods[0]
        if losses := result.series(_HELD_OUT):
            return f"{result.method}: loss {losses[0][1][-1]:.4f} on {report.split}"
        return f"{result.method}: {100 * result.miou:.2f} % mIoU on {report.split}"
    points = 100 * (best.miou - plain.miou)
    if points <= 0:
        return f"No method is above the plain student: {best.method} is {-points:.2f} points below"
    low = intervals.gain(best, plain).low
    if low is None:
        return (
            f"{best.method} is {points:.2f} points of mIoU above the plain student with one seed, "
            "which may be chance"
        )
    doubt = "" if low > 0 else ", with an interval that covers zero"
    return f"{best.method} gains {points:.2f} points of mIoU over the plain student{doubt}"


def _best_distilled(methods: Sequence[MethodResult]) -> MethodResult | None:
    """Returns the distilled student with the highest mIoU, without those that diverged."""
    distilled = [r for r in methods if r.role == "distilled" and not math.isnan(r.miou)]
    return max(distilled, key=lambda result: result.miou, default=None)


def _with_curves(methods: Sequence[MethodResult]) -> Sequence[MethodResult]:
    """Returns all methods, or the plain student and the best others if there are too many."""
    if len(methods) <= _MAX_CURVES:
        return methods
    plain = plain_student(methods)
    others = [result for result in methods if result.role != "teacher" and result is not plain]
    others.sort(key=lambda result: math.inf if math.isnan(result.miou) else -result.miou)
    return [*([plain] if plain else []), *others][:_MAX_CURVES]


def _legend(report: Report) -> list[tuple[str, str]]:
    """Returns name and color of every class, and of ignored pixels if a label has any."""
    colors = list(zip(report.class_names, map(css_color, report.palette), strict=True))
    classes = len(report.class_names)
    if any((example.label >= classes).any() for example in report.examples):
        colors.append(("ignored", css_color([IGNORED_GRAY] * 3)))
    return colors


def _inspected(report: Report) -> list[tuple[str, str, list[tuple[str, dict[str, str]]]]]:
    """Returns heading, explanation, and captioned pictures of each kind of image to look at."""
    kinds = (
        ("Lowest IoU", "The images of the split with the lowest mean IoU.", report.inspected.worst),
        (
            "Labels to check",
            "The images where student and teacher agree against the label on the largest share of "
            "the pixels. A label may be wrong, or both networks.",
            report.inspected.disputed,
        ),
    )
    return [
        (
            title,
            explanation,
            [(image.describe(), _pictures(image.example, report.palette)) for image in images],
        )
        for title, explanation, images in kinds
        if images
    ]


def _pictures(example: Example, palette: np.ndarray) -> dict[str, str]:
    """Returns data URIs by caption."""
    maps = {"label": example.label, **example.predictions}
    uris = {name: label_uri(labels, palette) for name, labels in maps.items()}
    return {"image": photo_uri(example.image), **uris}


def _logged(runs: Sequence[RunSummary]) -> list[str]:
    """Returns the names that training steps log in addition to the loss, in order."""
    names = dict.fromkeys(name for run in runs for record in run.history for name in record)
    return [n for n in names if n.startswith("train/") and n != _LOSS and n not in _NOT_DRAWN]


def _interval_charts(
    report: Report, methods: Sequence[MethodResult], colors: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Returns title and `<svg>` of mIoU and of its gain, if there is something to compare."""
    plain = plain_student(methods)
    if plain is None or len(methods) < 2 or math.isnan(plain.miou):
        return []
    others = [result for result in methods if result is not plain]
    mean = {result.method: intervals.seeds_mean(result) for result in methods}
    gain = {result.method: intervals.gain(result, plain) for result in others}
    seeds = {result.method: [run.miou for run in result.runs] for result in methods}
    pairs = {
        result.method: [] if result.role == "teacher" else intervals.paired_gains(result, plain)
        for result in others
    }
    charts = []
    for title, estimates, marks, line_at in (
        (f"mIoU on {report.split} (%)", mean, seeds, plain.miou),
        ("Gain over the plain student (points)", gain, pairs, 0.0),
    ):
        chart = figures.interval_dots(estimates, marks, title, colors, line_at=line_at)
        charts.append((title, figures.svg(chart)))
    return charts


def _charts(
    methods: Sequence[MethodResult], names: Sequence[str], colors: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Returns title and `<svg>` of each metric that a run logged."""
    drawn = _curves(methods, names, colors)
    return [(title, figures.svg(figure)) for title, figure in drawn.items()]


def _cost_chart(
    methods: Sequence[MethodResult], colors: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Returns title and `<svg>` of mIoU by cost, if several methods measured their cost."""
    unit = costs.unit_of(methods)
    series = costs.cost_curves(methods, _MIOU, unit)
    if len(series) < 2:
        return []
    words = unit.removeprefix("step_").replace("_", " ")
    title = f"{_TITLES[_MIOU]} by {words}"
    chart = figures.curves_by_cost(series, title, f"{words} of training", colors)
    return [(title, figures.svg(chart))]


def _curves(
    methods: Sequence[MethodResult], names: Sequence[str], colors: Mapping[str, str]
) -> dict[str, Figure]:
    """Returns by title a chart of each metric that a run logged."""
    drawn = {}
    for name in names:
        scale = 100 if name in (_MIOU, _AGREEMENT) else 1
        series = {
            result.method: [(steps, [scale * value for value in values]) for steps, values in seeds]
            for result in methods
            if (seeds := result.series(name))
        }
        if series:
            words = name.removeprefix("train/").replace("/", ": ").replace("_", " ")
            title = _TITLES.get(name, words)
            drawn[title] = figures.curves(series, title, colors)
    return drawn
