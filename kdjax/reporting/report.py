"""The report of a run or of a comparison: one HTML file that needs nothing beside it."""

import dataclasses
import io
import math
from collections.abc import Mapping, Sequence

import jinja2
import numpy as np
from etils import epath
from matplotlib.figure import Figure

from kdjax.reporting import figures, intervals, tables
from kdjax.reporting.intervals import heat_map, interval_dots
from kdjax.reporting.panels import COLORS, NEITHER, ONLY_DISTILLED, ONLY_PLAIN, css_color, panels
from kdjax.reporting.results import MethodResult, Report, RunSummary, plain_student, teacher_of
from kdjax.utils.files import write_atomically

# What every training step logs beside its loss terms.
_DIAGNOSTICS = (
    "train/learning_rate",
    "train/gradient_norm",
    "train/images_per_second",
    "train/input_wait",
    "train/checkpoint_seconds",
)
# The tables have them, or a chart of what follows from them.
_NOT_DRAWN = (
    "train/step_seconds",
    "train/step_processor_seconds",
    "train/step_flops",
    "train/step_bytes",
)
_MANY = 5  # curves in one chart, from which on they cannot be told apart

_TITLES = {"val/miou": "mIoU on val (%)", "train/images_per_second": "images/s"}

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("kdjax.reporting", "."),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_report(path: epath.PathLike, report: Report) -> None:
    """Writes `report` as one self-contained HTML file."""
    write_atomically(path, _render(report))


def _render(report: Report) -> str:
    methods = report.methods()
    teacher, plain, best = teacher_of(methods), plain_student(methods), _best_distilled(methods)
    distilled = [result.method for result in methods if result.role == "distilled"]
    colors = figures.method_colors(
        [result.method for result in methods],
        teacher and teacher.method,
        plain.method if plain and distilled else None,
    )
    gains, many = heat_map(report), len(methods) > _MANY
    terms = _charts(methods, _loss_terms(report.runs), colors)
    return _TEMPLATES.get_template("report.html").render(
        report=report,
        headline=_headline(report, methods),
        key_results=_key_results(methods),
        note=tables.note(report),
        method_table=tables.method_table(report),
        run_table=tables.run_table(report),
        interval_charts=_interval_charts(report, methods, colors),
        curves=[*_learning_curves(methods, colors), *([] if many else terms)],
        losses_folded=many,
        diagnostics=[
            *(terms if many else []),
            *_charts(methods, [*_DIAGNOSTICS, *_term_diagnostics(report.runs)], colors),
        ],
        heat_map=gains,
        class_charts=[] if gains else _class_charts(report.class_names, methods, colors),
        legend=_legend(report),
        disagreement_legend=[
            ("only the distilled student is right", COLORS[ONLY_DISTILLED]),
            ("only the plain student is right", COLORS[ONLY_PLAIN]),
            ("neither is, in different ways", COLORS[NEITHER]),
        ],
        examples=[
            panels(
                example,
                report.palette,
                plain=plain and plain.method,
                distilled=distilled,
                best=best and best.method,
            )
            for example in report.examples
        ],
    )


def write_results(directory: epath.PathLike, report: Report) -> None:
    """Writes the table of methods as `results.md` and, with unrounded numbers, `results.csv`."""
    directory = epath.Path(directory)
    text = f"# {report.title}\n\n{report.subtitle}. Measured on {report.split}.\n\n"
    text += tables.markdown_table(report) + "\n"
    if note := tables.note(report):
        text += f"\n{note}\n"
    if report.remarks:
        text += "\n" + "".join(f"- {line}\n" for line in report.remarks)
    write_atomically(directory / "results.md", text)
    write_atomically(directory / "results.csv", tables.csv_table(report))


def run_figures(run: RunSummary, class_names: Sequence[str]) -> dict[str, Figure]:
    """The charts of a single run by title: mIoU on val, the loss and its terms, IoU by class."""
    methods = [MethodResult(method=run.method, role=run.role, runs=[run])]
    colors = figures.method_colors([run.method])
    names = dict.fromkeys(("val/miou", "train/loss", *_loss_terms([run])))
    drawn = dict(_curves(methods, list(names), colors))
    bars = figures.class_iou_bars({run.method: run.class_iou}, class_names, colors)
    return drawn | {"IoU by class (%)": bars}


def examples_png(report: Report) -> bytes:
    """The examples of a report as a picture: image, label and predictions, a row each."""
    examples = [dataclasses.asdict(example) for example in report.examples]
    buffer = io.BytesIO()
    figures.samples(examples, report.class_names, report.palette).savefig(buffer, format="png")
    return buffer.getvalue()


def _headline(report: Report, methods: Sequence[MethodResult]) -> str:
    """Returns the result in one sentence, no bolder than the seeds allow."""
    plain, best = plain_student(methods), _best_distilled(methods)
    if plain is None or best is None or math.isnan(plain.miou):
        result = best or plain or methods[0]
        return f"{result.method}: {100 * result.miou:.2f} % mIoU on {report.split}"
    gain = 100 * (best.miou - plain.miou)
    if gain > 0:
        low = intervals.gain(best, plain).low
        if low is None:
            return (
                f"{best.method} is {gain:.2f} points of mIoU above the plain student with one "
                "seed, which may be chance"
            )
        doubt = "" if low > 0 else ", with an interval that covers zero"
        return f"{best.method} gains {gain:.2f} points of mIoU over the plain student{doubt}"
    return f"No method gains on the plain student: {best.method} is {-gain:.2f} points below it"


def _key_results(methods: Sequence[MethodResult]) -> list[MethodResult]:
    """The teacher, the plain student and the best distilled one, as far as they are there."""
    results = (teacher_of(methods), plain_student(methods), _best_distilled(methods))
    return [result for result in results if result is not None]


def _best_distilled(methods: Sequence[MethodResult]) -> MethodResult | None:
    """Of those that have a result: a run may have diverged."""
    distilled = [r for r in methods if r.role == "distilled" and not math.isnan(r.miou)]
    return max(distilled, key=lambda result: result.miou, default=None)


def _legend(report: Report) -> list[tuple[str, str]]:
    """Name and CSS colour of every class, and of what is ignored where a label has such pixels."""
    colors = list(zip(report.class_names, map(css_color, report.palette), strict=True))
    classes = len(report.class_names)
    if any((example.label >= classes).any() for example in report.examples):
        colors.append(("ignored", css_color(figures.IGNORED_GREY)))
    return colors


def _loss_terms(runs: Sequence[RunSummary]) -> list[str]:
    """The loss and its terms."""
    others = {*_DIAGNOSTICS, *_NOT_DRAWN}
    return [n for n in _logged(runs) if n.count("/") == 1 and n not in others]


def _term_diagnostics(runs: Sequence[RunSummary]) -> list[str]:
    """What terms log beside their values, as `train/nfd/dead_teacher_channels`."""
    return [name for name in _logged(runs) if name.count("/") > 1]


def _logged(runs: Sequence[RunSummary]) -> list[str]:
    """The names of what training steps log, in the order in which the runs do."""
    names = dict.fromkeys(name for run in runs for record in run.history for name in record)
    return [name for name in names if name.startswith("train/")]


def _interval_charts(
    report: Report, methods: Sequence[MethodResult], colors: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Title and `<svg>` of mIoU and of the gain in it, where there is something to compare."""
    plain, teacher = plain_student(methods), teacher_of(methods)
    if plain is None or len(methods) < 2 or math.isnan(plain.miou):
        return []
    others = [result for result in methods if result is not plain]
    mean = {result.method: intervals.seeds_mean(result) for result in methods}
    gain = {result.method: intervals.gain(result, plain) for result in others}
    seeds = {result.method: [run.miou for run in result.runs] for result in methods}
    pairs = {
        result.method: [] if result is teacher else intervals.paired_gains(result, plain)
        for result in others
    }
    title = f"mIoU on {report.split} (%)"
    gain_title = "Gain over the plain student (points)"
    return [
        (title, figures.svg(interval_dots(mean, seeds, title, colors, line_at=plain.miou))),
        (gain_title, figures.svg(interval_dots(gain, pairs, gain_title, colors, line_at=0.0))),
    ]


def _learning_curves(
    methods: Sequence[MethodResult], colors: Mapping[str, str]
) -> list[tuple[str, str]]:
    """MIoU during the training: in one chart, or of each distilled student beside the plain one."""
    plain, name = plain_student(methods), "val/miou"
    if plain is None or len(methods) <= _MANY:
        return _charts(methods, [name], colors)
    students = [result for result in methods if result.role != "teacher"]
    values = [v for result in students for _, seed in result.series(name) for v in seed]
    limits = 100 * np.nanmin(values, initial=1), 100 * np.nanmax(values, initial=0)
    room = 0.05 * (limits[1] - limits[0])
    charts = []
    for result in students[1:]:
        ((title, chart),) = _charts(
            [plain, result], [name], colors, limits=(limits[0] - room, limits[1] + room)
        )
        charts.append((f"{title}: {result.method}", chart))
    return charts


def _charts(
    methods: Sequence[MethodResult],
    names: Sequence[str],
    colors: Mapping[str, str],
    limits: tuple[float, float] | None = None,
) -> list[tuple[str, str]]:
    """Title and `<svg>` of each metric that some run has logged."""
    drawn = _curves(methods, names, colors, limits)
    return [(title, figures.svg(figure)) for title, figure in drawn]


def _curves(
    methods: Sequence[MethodResult],
    names: Sequence[str],
    colors: Mapping[str, str],
    limits: tuple[float, float] | None = None,
) -> list[tuple[str, Figure]]:
    """Title and figure of each metric that some run has logged."""
    drawn = []
    for name in names:
        scale = 100 if name == "val/miou" else 1
        series = {
            result.method: [(steps, [scale * value for value in values]) for steps, values in seeds]
            for result in methods
            if (seeds := result.series(name))
        }
        if series:
            title = _TITLES.get(
                name, name.removeprefix("train/").replace("/", ": ").replace("_", " ")
            )
            drawn.append((title, figures.curves(series, title, colors, limits)))
    return drawn


def _class_charts(
    class_names: Sequence[str], methods: Sequence[MethodResult], colors: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Title and `<svg>` of the bars: one chart, or two side by side if the classes are many."""
    charts = []
    size = len(class_names) if len(class_names) <= 6 else -(-len(class_names) // 2)
    for start in range(0, len(class_names), size):
        part = slice(start, start + size)
        names = class_names[part]
        iou = {result.method: result.class_iou[part] for result in methods}
        bars = figures.class_iou_bars(iou, names, colors)
        charts.append((f"IoU of {', '.join(names)}", figures.svg(bars)))
    return charts
