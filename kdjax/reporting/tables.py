"""Tables of methods, runs, and classes: for the terminal, Markdown, CSV, and the HTML report."""

import dataclasses
import datetime
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kdjax.reporting.intervals import (
    LEVEL,
    Estimate,
    class_gains,
    gain,
    gap_closed,
    without_outliers,
)
from kdjax.reporting.results import OPTIONAL_SCORES, Report, plain_student, teacher_of
from kdjax.utils.files import to_csv

_ENDS = ("", "_low", "_high")
_MEANS = (
    *("pixel_accuracy", "agreement", "parameters"),
    *("step_flops", "step_bytes", "images_per_second", "seconds"),
)
_STEP_COSTS = ("FLOP/step", "Memory")
_GAIN, _LOSS = "42 127 196", "213 94 0"  # blue and vermilion
_STRONGEST = 0.7  # opacity of a color behind text, which stays legible on white and on black


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
      text: the text of the cell.
      key: the value by which rows are sorted; empty if unknown.
      background: a CSS color; empty for none.
      interval: the interval as text; empty for none.
      bold: True if the interval excludes zero.
    """

    text: str
    key: float | str = ""
    background: str = ""
    interval: str = ""
    bold: bool = False


_UNKNOWN = Cell("–")


class Table(NamedTuple):
    """Rows of cells; the kind of a row is a role, or "class"."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    kinds: Sequence[str]

    def texts(self) -> list[list[str]]:
        """Returns the texts of the cells."""
        return [[cell.text for cell in row] for row in self.rows]


def method_rows(report: Report, *, by_seed: bool = False) -> list[dict[str, Any]]:
    """Returns a row per method, or per run, with means over the seeds, gains, and costs.

    Fractions and seconds are not rounded. A number is None if it is unknown. For two classes,
    "object_iou" is the IoU of the second one. Boundary scores, precision, and recall are included
    if a run has them.
    """
    methods = report.methods()
    plain, teacher = plain_student(methods), teacher_of(methods)
    optional = [
        name
        for name in OPTIONAL_SCORES
        if any(getattr(run, name) is not None for run in report.runs)
    ]
    rows = []
    for method in methods:
        base = report.base(method)
        parts = [dataclasses.replace(method, runs=[run]) for run in method.runs]
        for result in parts if by_seed else [method]:
            numbers = {"miou": result.miou, "miou_deviation": result.miou_deviation}
            for name, estimate in (
                ("vs_plain", gain(result, plain)),
                ("own_effect", gain(result, base)),
                ("gap_closed", gap_closed(result, plain, teacher)),
            ):
                numbers |= {f"{name}{end}": x for end, x in zip(_ENDS, estimate, strict=True)}
            numbers |= {field: result.mean(field) for field in (*_MEANS, *optional)}
            name = f"{method.method}, seed {result.runs[0].seed}" if by_seed else method.method
            row = {"method": name, "role": method.role, "seeds": len(result.runs)}
            if len(report.class_names) == 2:
                numbers["object_iou"] = result.class_iou[1]
            for key, number in numbers.items():
                row[key] = None if number is None or math.isnan(number) else float(number)
            rows.append(row)
    return rows


def method_table(report: Report, *, by_seed: bool = False) -> Table:
    """Makes the table of `method_rows`, without the columns in which nothing is known."""
    numbers = method_rows(report, by_seed=by_seed)
    name = report.class_names[1] if len(report.class_names) == 2 else None
    rows = [_cells(row, report.builds_on.get(row["method"]), name) for row in numbers]
    header = [name for name in rows[0] if any(row[name].text != _UNKNOWN.text for row in rows)]
    cells = [[row[name] for name in header] for row in rows]
    return Table(header, cells, [row["role"] for row in numbers])


def _cells(row: Mapping[str, Any], base: str | None, name: str | None) -> dict[str, Cell]:
    own = estimate_text(row, "own_effect", "+.2f")
    of_object = {f"IoU of {name} %": _number(row["object_iou"], _percent)} if name else {}
    titles = ("Precision %", "Recall %", "Boundary IoU %", "Boundary F1 %")
    optional = {
        title: _number(row.get(key), _percent)
        for title, key in zip(titles, OPTIONAL_SCORES, strict=True)
    }
    return {
        "Method": Cell(row["method"], row["method"]),
        "mIoU %": _number(row["miou"], lambda _: miou_text(row)),
        **of_object,
        **optional,
        "vs plain": _number(row["vs_plain"], lambda _: estimate_text(row, "vs_plain", "+.2f")),
        "Own effect": _number(row["own_effect"], lambda _: f"{own} on {base}" if base else own),
        "Gap closed %": _number(
            row["gap_closed"], lambda _: estimate_text(row, "gap_closed", ".0f")
        ),
        "Pixel acc. %": _number(row["pixel_accuracy"], _percent),
        "Agreement %": _number(row["agreement"], _percent),
        "Seeds": _number(row["seeds"], str),
        "Parameters": _number(row["parameters"], _count),
        "FLOP/step": _number(row["step_flops"], _count),
        "Memory": _number(row["step_bytes"], _memory),
        "Images/s": _number(row["images_per_second"], "{:,.1f}".format),
        "Time": _number(row["seconds"], _duration),
    }


def class_table(report: Report) -> tuple[Table, float | None]:
    """Makes a row per class: the plain student's IoU and the gains of the other methods.

    The gains of the teacher have no color: they show how much there is to gain.

    Returns:
      The table, and the points of a gain from which its color is the strongest. Without a distilled
      and a plain student to compare, the columns are the IoU of each method, and the points None.
    """
    methods = report.methods()
    plain = plain_student(methods)
    kinds = ["class"] * len(report.class_names)
    names = [Cell(name, name) for name in report.class_names]
    if plain is None or not any(result.role == "distilled" for result in methods):
        columns = [[_number(iou, _percent) for iou in result.class_iou] for result in methods]
        header = ["Class", *(f"{result.method}, IoU %" for result in methods)]
        return Table(header, [*zip(names, *columns, strict=True)], kinds), None
    gains = {r.method: class_gains(r, plain) for r in methods if r is not plain}
    students = [r.method for r in methods if r is not plain and r.role != "teacher"]
    colored = np.array([estimate.value for name in students for estimate in gains[name]])
    full = 100 * float(np.max(np.abs(without_outliers(colored)), initial=0))
    columns = [[_number(iou, lambda iou: f"{100 * iou:.1f}") for iou in plain.class_iou]]
    for name, estimates in gains.items():
        columns.append([_gain_cell(e, full if name in students else 0.0) for e in estimates])
    header = ["Class", f"{plain.method}, IoU %", *gains]
    return Table(header, [*zip(names, *columns, strict=True)], kinds), full


def note(report: Report) -> str:
    """Explains the table of methods in sentences; empty for a single row."""
    rows = method_rows(report)
    if len(rows) < 2:
        return ""
    plain, teacher = (
        next((row["miou"] for row in rows if row["role"] == role), None)
        for role in ("plain", "teacher")
    )
    sentences = [
        "Means over the seeds; ± is the standard deviation between them."
        if any(row["seeds"] > 1 for row in rows)
        else "One seed each: a difference may be chance."
    ]
    if plain and teacher and teacher < plain:
        sentences.append(
            f"The teacher's mIoU ({_percent(teacher)} %) is below that of the plain student "
            f"({_percent(plain)} %): train the teacher longer, or choose a better one."
        )
    explanations = {
        "vs_plain": "“vs plain” is the gain in points of mIoU.",
        "own_effect": "“Own effect” is the gain over the method that a method builds on.",
        "vs_plain_low": f"Brackets contain the {LEVEL:.0%} confidence interval of its mean "
        "(Student's t on the differences by seed).",
        "gap_closed_low": "“Gap closed” is the fraction of the gap between the plain student and "
        "this teacher, with Fieller's interval; there is no interval if the gap may be zero.",
    }
    for column, explanation in explanations.items():
        if any(row[column] is not None for row in rows):
            sentences.append(explanation)
    return " ".join(sentences)


def text_table(report: Report) -> str:
    """Formats the table of methods for the terminal, without what a step costs."""
    table = method_table(report)
    rows = [table.header, *table.texts()]
    columns = [column for column in zip(*rows, strict=True) if column[0] not in _STEP_COSTS]
    aligned = []
    for index, column in enumerate(columns):
        width = max(map(len, column))
        aligned.append([cell.rjust(width) if index else cell.ljust(width) for cell in column])
    header, *lines = map("  ".join, zip(*aligned, strict=True))
    return "\n".join([header, "─" * len(header), *lines])


def markdown_table(report: Report) -> str:
    """Formats the table of methods as Markdown."""
    table = method_table(report)
    rows = [[cell.replace("|", "\\|") for cell in row] for row in table.texts()]
    return "\n".join(markdown_lines([table.header, *rows]))


def markdown_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a Markdown table whose first row is the header."""
    header, *others = rows
    rule = ["---", *["---:"] * (len(header) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (header, rule, *others)]


def csv_table(report: Report) -> str:
    """Formats `method_rows` as CSV; a cell is empty if its value is unknown."""
    rows = method_rows(report)
    return to_csv([[*rows[0]], *([*row.values()] for row in rows)])


def miou_text(row: Mapping[str, Any]) -> str:
    """Returns `52.30 ± 1.10` in percent of a row; without the deviation for a single seed."""
    if row["miou"] is None:
        return _UNKNOWN.text
    deviation = row["miou_deviation"]
    return _percent(row["miou"]) + ("" if deviation is None else f" ± {_percent(deviation)}")


def estimate_text(row: Mapping[str, Any], name: str, form: str) -> str:
    """Returns `+9.00 [+7.10, +10.90]` of a row, in percent or points; a dash if unknown."""
    numbers = [row[f"{name}{end}"] for end in _ENDS]
    texts = [f"{100 * number:{form}}" for number in numbers if number is not None]
    if not texts:
        return _UNKNOWN.text
    return f"{texts[0]} [{', '.join(texts[1:])}]" if texts[1:] else texts[0]


def _number(number: float | None, text: Callable[[Any], str]) -> Cell:
    if number is None or math.isnan(number):
        return _UNKNOWN
    return Cell(text(number), number)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def _gain_cell(estimate: Estimate, full: float) -> Cell:
    """Makes the cell of a gain; its color is the strongest from `full` points on, none if 0."""
    value, low, high = (None if x is None else 100 * x for x in estimate)
    if value is None or math.isnan(value):
        return _UNKNOWN
    background = ""
    if full:
        opacity = _STRONGEST * min(abs(value) / full, 1)
        background = f"rgb({_GAIN if value > 0 else _LOSS} / {opacity:.0%})"
    text = f"{round(value, 1) + 0:+.1f}"  # not -0.0
    if low is None or high is None:
        return Cell(text, value, background)
    return Cell(text, value, background, f"[{low:+.1f}, {high:+.1f}]", low > 0 or high < 0)


def _count(number: float) -> str:
    return _scaled(number, 1000, ("", " k", " M", " G", " T"))


def _memory(number: float) -> str:
    return _scaled(number, 1024, (" B", " KiB", " MiB", " GiB"))


def _scaled(number: float, base: int, units: Sequence[str]) -> str:
    """Returns a number to three digits, with its unit."""
    power = min(int(math.log(max(number, 1), base)), len(units) - 1)
    return f"{number / base**power:.3g}{units[power]}"


def _duration(seconds: float) -> str:
    """Returns `h:mm:ss`."""
    return str(datetime.timedelta(seconds=round(seconds)))
