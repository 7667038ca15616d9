"""The report of a run or of a comparison: one HTML file that needs nothing beside it."""

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
from etils import epath
from PIL import Image

from kdjax.reporting import figures, tables
from kdjax.reporting.files import write_atomically
from kdjax.reporting.results import MethodResult, Report, plain_student, teacher_of

_PICTURE_SIDE = 512  # pixels; larger pictures are reduced, so that the file stays easy to send

# What every training step logs beside its loss terms.
_DIAGNOSTICS = ("train/learning_rate", "train/gradient_norm", "train/images_per_second")

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
    teacher = teacher_of(methods)
    colors = figures.method_colors(
        [result.method for result in methods], teacher and teacher.method
    )
    return _TEMPLATES.get_template("report.html").render(
        report=report,
        headline=_headline(report, methods),
        key_results=_key_results(methods),
        note=tables.note(report),
        method_table=tables.method_table(report),
        run_table=tables.run_table(report),
        curves=_charts(methods, ["val/miou", *_loss_terms(report)], colors),
        diagnostics=_charts(methods, [*_DIAGNOSTICS, *_term_diagnostics(report)], colors),
        class_charts=_class_charts(report.class_names, methods, colors),
        legend=_legend(report),
        examples=[
            {
                "image": _photograph(example.image),
                "label": _label_map(example.label, report.palette),
                **{
                    name: _label_map(prediction, report.palette)
                    for name, prediction in example.predictions.items()
                },
            }
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
    write_atomically(directory / "results.md", text)
    write_atomically(directory / "results.csv", tables.csv_table(report))


def _headline(report: Report, methods: Sequence[MethodResult]) -> str:
    """The result in one sentence."""
    plain, best = plain_student(methods), _best_taught(methods)
    if plain is None or best is None or math.isnan(plain.miou):
        result = best or plain or methods[0]
        return f"{result.method}: {100 * result.miou:.2f} % mIoU on {report.split}"
    gain = 100 * (best.miou - plain.miou)
    if gain > 0:
        return f"{best.method} gains {gain:.2f} points of mIoU over the plain student"
    return f"No method gains on the plain student: {best.method} is {-gain:.2f} points below it"


def _key_results(methods: Sequence[MethodResult]) -> list[MethodResult]:
    """The teacher, the plain student and the best taught one, as far as they are there."""
    results = (teacher_of(methods), plain_student(methods), _best_taught(methods))
    return [result for result in results if result is not None]


def _best_taught(methods: Sequence[MethodResult]) -> MethodResult | None:
    """Of those that have a result: a run may have diverged."""
    taught = [r for r in methods if r.role == "taught" and not math.isnan(r.miou)]
    return max(taught, key=lambda result: result.miou, default=None)


def _legend(report: Report) -> list[tuple[str, str]]:
    """Name and CSS colour of every class, and of what is ignored where a label has such pixels."""
    colors = list(zip(report.class_names, map(_css_color, report.palette), strict=True))
    classes = len(report.class_names)
    if any((example.label >= classes).any() for example in report.examples):
        colors.append(("ignored", _css_color(figures.IGNORED_GREY)))
    return colors


def _loss_terms(report: Report) -> list[str]:
    """The loss and its terms."""
    return [n for n in _logged(report) if n.count("/") == 1 and n not in _DIAGNOSTICS]


def _term_diagnostics(report: Report) -> list[str]:
    """What terms log beside their values, as `train/nfd/dead_teacher_channels`."""
    return [name for name in _logged(report) if name.count("/") > 1]


def _logged(report: Report) -> list[str]:
    """The names of what training steps log, in the order in which the runs do."""
    names = dict.fromkeys(name for run in report.runs for record in run.history for name in record)
    return [name for name in names if name.startswith("train/")]


def _charts(
    methods: Sequence[MethodResult], names: Sequence[str], colors: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Title and `<svg>` of each metric that some run has logged."""
    charts = []
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
            charts.append((title, figures.svg(figures.curves(series, title, colors))))
    return charts


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


def _photograph(image: np.ndarray) -> str:
    """`[H, W, 3]` uint8 as a data URI."""
    picture = Image.fromarray(image)
    picture.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
    return _data_uri(picture, "JPEG", quality=90, subsampling=0)


def _label_map(label: np.ndarray, palette: np.ndarray) -> str:
    """`[H, W]` uint8 as a data URI: a PNG of class numbers with the palette, a few kB."""
    picture = Image.fromarray(label)
    picture.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE), Image.Resampling.NEAREST)
    picture.putpalette(figures.full_palette(palette).tobytes())
    return _data_uri(picture, "PNG", optimize=True)


def _data_uri(picture: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _css_color(rgb: Iterable[int]) -> str:
    return "#" + bytes(map(int, rgb)).hex()
