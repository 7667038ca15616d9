"""The table of methods: for the terminal, for Markdown, and as cells for the HTML report."""

import dataclasses
import datetime
import math
from collections.abc import Sequence

from kdjax.reporting.results import MethodResult, Report, RunSummary, plain_student

_NONE = "–"


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells as text; `rows[i]` is about a network of role `roles[i]`."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    roles: Sequence[str]


def method_table(report: Report) -> Table:
    """One row per method: mean over its seeds, and the standard deviation of mIoU."""
    methods = report.methods()
    plain = plain_student(methods)

    def cells(result: MethodResult) -> dict[str, str]:
        gain = math.nan if plain is None or result is plain else result.miou - plain.miou
        return {
            "Method": result.method,
            "mIoU %": _percent(result.miou) + _deviation(result.miou_deviation),
            "vs plain": _percent(gain, "+"),
            "Pixel acc. %": _percent(result.mean("pixel_accuracy")),
            "Agreement %": _percent(result.mean("agreement")),
            "Seeds": str(len(result.runs)),
            "Parameters": _count(result.mean("parameters")),
            "Images/s": f"{result.mean('images_per_second'):,.1f}",
            "Time": _duration(result.mean("seconds")),
        }

    return _table([cells(result) for result in methods], [result.role for result in methods])


def run_table(report: Report) -> Table:
    """One row per run, with what its training was given."""

    def cells(run: RunSummary) -> dict[str, str]:
        return {
            "Method": run.method,
            "Seed": str(run.seed),
            "Steps": f"{run.steps:,}",
            "Learning rate": f"{run.learning_rate:g}",
            "mIoU %": _percent(run.miou),
            "Pixel acc. %": _percent(run.pixel_accuracy),
            "Agreement %": _percent(run.agreement),
            "Images/s": f"{run.images_per_second:,.1f}",
            "Time": _duration(run.seconds),
        }

    runs = [run for result in report.methods() for run in result.runs]
    return _table([cells(run) for run in runs], [run.role for run in runs])


def text_table(report: Report) -> str:
    """The table of methods in aligned columns, for the terminal."""
    table = method_table(report)
    widths = [max(map(len, column)) for column in zip(table.header, *table.rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        numbers = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "  ".join([cells[0].ljust(widths[0]), *numbers])

    rule = "─" * len(line(table.header))
    return "\n".join([line(table.header), rule, *map(line, table.rows)])


def markdown_table(report: Report) -> str:
    """The table of methods in Markdown."""
    table = method_table(report)
    rule = ["---", *["---:"] * (len(table.header) - 1)]
    rows = [[cell.replace("|", "\\|") for cell in row] for row in table.rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (table.header, rule, *rows))


def _table(rows: Sequence[dict[str, str]], roles: Sequence[str]) -> Table:
    """Without the columns that nothing has been measured for."""
    header = [name for name in rows[0] if any(row[name] != _NONE for row in rows)]
    return Table(header, [[row[name] for name in header] for row in rows], roles)


def _percent(share: float | None, sign: str = "") -> str:
    return _NONE if share is None or math.isnan(share) else f"{100 * share:{sign}.2f}"


def _deviation(share: float | None) -> str:
    return "" if share is None or math.isnan(share) else f" ± {100 * share:.2f}"


def _count(number: float) -> str:
    """A number of parameters, to three digits."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def _duration(seconds: float) -> str:
    """`h:mm:ss`."""
    return str(datetime.timedelta(seconds=round(seconds)))
