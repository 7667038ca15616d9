"""The table of methods: for the terminal, Markdown, CSV, and as cells for the HTML report."""

import dataclasses
import datetime
import math
from collections.abc import Sequence
from typing import Any

from kdjax.reporting.intervals import LEVEL, Estimate, gain, gap_closed
from kdjax.reporting.results import (
    MethodResult,
    Report,
    RunSummary,
    plain_student,
    teacher_of,
)
from kdjax.utils.files import to_csv

_NONE = "–"
_STEP_COSTS = ("FLOP/step", "Memory")

Cell = tuple[str, float | str]
"""What a reader sees, and what rows are sorted by."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells as text; `rows[i]` is about a network of role `roles[i]`, `keys` sort its rows."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    keys: Sequence[Sequence[float | str]]
    roles: Sequence[str]


def method_table(report: Report) -> Table:
    """One row per method: mean over its seeds, standard deviation, gain with its interval."""
    methods = report.methods()
    plain, teacher = plain_student(methods), teacher_of(methods)

    def cells(result: MethodResult) -> dict[str, Cell]:
        above, closed = gain(result, plain), gap_closed(result, plain, teacher)
        return {
            "Method": (result.method, result.method),
            "mIoU %": (miou_text(result), _percent(result.miou)[1]),
            "vs plain": _estimate(above, "+.2f"),
            "Own effect": _own_effect(result, report.base(result)),
            "Gap closed %": _estimate(closed, ".0f"),
            "Pixel acc. %": _percent(result.mean("pixel_accuracy")),
            "Agreement %": _percent(result.mean("agreement")),
            "Seeds": (str(len(result.runs)), len(result.runs)),
            "Parameters": _count(result.mean("parameters")),
            "FLOP/step": _count(result.mean("step_flops")),
            "Memory": _memory(result.mean("step_bytes")),
            "Images/s": _rate(result.mean("images_per_second")),
            "Time": _duration(result.mean("seconds")),
        }

    return _table([cells(result) for result in methods], [result.role for result in methods])


def note(report: Report) -> str:
    """Explains the table of methods in sentences; empty for a single row."""
    methods = report.methods()
    if len(methods) < 2:
        return ""
    plain, teacher = plain_student(methods), teacher_of(methods)
    said = []
    if any(len(result.runs) > 1 for result in methods):
        said.append("Means over the seeds; ± is the standard deviation between them.")
    else:
        said.append("One seed each: how much of a difference is chance cannot be told from this.")
    if plain and teacher and teacher.miou < plain.miou:
        said.append(
            f"The teacher's mIoU ({100 * teacher.miou:.2f} %) is below that of the plain student "
            f"({100 * plain.miou:.2f} %): train the teacher longer, or take a better one."
        )
    if plain:
        said.append("“vs plain” counts points of mIoU.")
    if any(report.base(result) for result in methods):
        said.append("“Own effect” counts points over the method that a method builds on.")
    if any(gain(result, plain).low is not None for result in methods):
        said.append(
            f"In brackets, the {LEVEL:.0%} confidence interval of its mean (Student's t on the "
            "differences by seed)."
        )
    if any(gap_closed(result, plain, teacher).low is not None for result in methods):
        said.append(
            "“Gap closed” is the share of the way from the plain student to this teacher, with "
            "Fieller's interval; none where the gap cannot be told from zero."
        )
    return " ".join(said)


def run_table(report: Report) -> Table:
    """One row per run, with what its training was given."""

    def cells(run: RunSummary) -> dict[str, Cell]:
        return {
            "Method": (run.method, run.method),
            "Seed": (str(run.seed), run.seed),
            "Steps": _number(run.steps, ","),
            "Learning rate": _number(run.learning_rate, "g"),
            "mIoU %": _percent(run.miou),
            "Pixel acc. %": _percent(run.pixel_accuracy),
            "Agreement %": _percent(run.agreement),
            "Images/s": _rate(run.images_per_second),
            "Time": _duration(run.seconds),
        }

    runs = [run for result in report.methods() for run in result.runs]
    return _table([cells(run) for run in runs], [run.role for run in runs])


def text_table(report: Report) -> str:
    """The table of methods in aligned columns, for the terminal: without what a step costs."""
    table = method_table(report)
    columns = [
        column
        for column in zip(table.header, *table.rows, strict=True)
        if column[0] not in _STEP_COSTS
    ]
    header, *rows = zip(*columns, strict=True)
    widths = [max(map(len, column)) for column in columns]

    def line(cells: Sequence[str]) -> str:
        numbers = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "  ".join([cells[0].ljust(widths[0]), *numbers])

    rule = "─" * len(line(header))
    return "\n".join([line(header), rule, *map(line, rows)])


def markdown_table(report: Report) -> str:
    """The table of methods in Markdown."""
    table = method_table(report)
    rule = ["---", *["---:"] * (len(table.header) - 1)]
    rows = [[cell.replace("|", "\\|") for cell in row] for row in table.rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (table.header, rule, *rows))


def method_rows(report: Report) -> list[dict[str, Any]]:
    """The table of methods with unrounded numbers: shares of one, seconds; None where unknown."""
    methods = report.methods()
    plain, teacher = plain_student(methods), teacher_of(methods)
    rows = []
    for result in methods:
        numbers = [result.miou, result.miou_deviation]
        numbers += [*gain(result, plain), *gain(result, report.base(result))]
        numbers += gap_closed(result, plain, teacher)
        numbers += [result.mean(field) for field in _MEANS]
        known = [None if x is None or math.isnan(x) else float(x) for x in numbers]
        cells = (result.method, result.role, len(result.runs), *known)
        rows.append(dict(zip(_COLUMNS, cells, strict=True)))
    return rows


def csv_table(report: Report) -> str:
    """`method_rows` under their header; empty where unknown."""
    return to_csv([_COLUMNS, *([*row.values()] for row in method_rows(report))])


def miou_text(result: MethodResult) -> str:
    """In percent, `52.30 ± 1.10`; without a deviation where it has a single seed."""
    text, deviation = _percent(result.miou)[0], result.miou_deviation
    if deviation is None or math.isnan(deviation):
        return text
    return f"{text} ± {100 * deviation:.2f}"


def estimate_text(estimate: Estimate, form: str) -> str:
    """In percent or points, `+9.00 [+7.10, +10.90]`; a dash where there is none."""
    value, *ends = estimate
    if math.isnan(value):
        return _NONE
    texts = [f"{100 * number:{form}}" for number in (value, *ends) if number is not None]
    return texts[0] + (f" [{texts[1]}, {texts[2]}]" if len(texts) > 1 else "")


_MEANS = (
    *("pixel_accuracy", "agreement", "parameters"),
    *("step_flops", "step_bytes", "images_per_second", "seconds"),
)
_ESTIMATES = [
    f"{name}{end}"
    for name in ("vs_plain", "own_effect", "gap_closed")
    for end in ("", "_low", "_high")
]
_COLUMNS = ("method", "role", "seeds", "miou", "miou_deviation", *_ESTIMATES, *_MEANS)


def _table(rows: Sequence[dict[str, Cell]], roles: Sequence[str]) -> Table:
    """Without the columns that nothing has been measured for."""
    header = [name for name in rows[0] if any(row[name][0] != _NONE for row in rows)]
    texts, keys = ([[row[name][part] for name in header] for row in rows] for part in (0, 1))
    return Table(header, [[str(text) for text in row] for row in texts], keys, roles)


def _percent(share: float | None) -> Cell:
    if share is None or math.isnan(share):
        return _NONE, ""
    return f"{100 * share:.2f}", share


def _estimate(estimate: Estimate, form: str) -> Cell:
    text = estimate_text(estimate, form)
    return text, "" if text == _NONE else estimate.value


def _own_effect(result: MethodResult, base: MethodResult | None) -> Cell:
    text, key = _estimate(gain(result, base), "+.2f")
    return (f"{text} on {base.method}", key) if base else (text, key)


def _number(number: float | None, form: str) -> Cell:
    return (_NONE, "") if number is None else (f"{number:{form}}", number)


def _rate(number: float | None) -> Cell:
    if number is None or math.isnan(number):
        return _NONE, ""
    return f"{number:,.1f}", number


def _count(number: float) -> Cell:
    """A number of parameters or operations, to three digits."""
    if math.isnan(number):
        return _NONE, ""
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{unit}", number
    return f"{number:.0f}", number


def _memory(number: float) -> Cell:
    """Bytes, to three digits."""
    if math.isnan(number):
        return _NONE, ""
    for size, unit in ((2**30, "GiB"), (2**20, "MiB")):
        if number >= size:
            return f"{number / size:.3g} {unit}", number
    return f"{number / 2**10:.3g} KiB", number


def _duration(seconds: float | None) -> Cell:
    """`h:mm:ss`."""
    if seconds is None or math.isnan(seconds):
        return _NONE, ""
    return str(datetime.timedelta(seconds=round(seconds))), seconds
