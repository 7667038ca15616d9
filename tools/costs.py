"""Writes the cost of each loss into the table of docs/methods, from docs/methods/costs.csv.

python -m benchmarks.programs --terms docs/methods/costs.csv    measures for a few minutes
python -m tools.costs                                           writes the column
"""

import csv
import pathlib
import re

METHODS = pathlib.Path(__file__).resolve().parent.parent / "docs" / "methods"
PAGE, RAW = METHODS / "README.md", METHODS / "costs.csv"


def cells() -> dict[str, str]:
    """Returns the cells of the column by loss. Time is a multiple of that of cross-entropy."""
    with RAW.open() as file:
        rows = {row["loss"]: row for row in csv.DictReader(file)}
    unit = float(rows["cross_entropy"]["processor_seconds"])

    def number(value: float) -> str:
        return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"

    def cell(row: dict[str, str]) -> str:
        times = float(row["processor_seconds"]) / unit
        return " / ".join(map(number, (times, float(row["gflop"]), float(row["megabytes"]))))

    return {name: cell(row) for name, row in rows.items()}


def written(page: str) -> str:
    """Returns the page with the column."""
    found, (before, mark, table) = cells(), page.partition("\n## All losses\n")
    table, end, after = table.partition("\n## ")

    def row(match: re.Match[str]) -> str:
        return f"{match[1]} {found[match[2]]} |"

    table = re.sub(r"^(\| \[?`(\w+)`.*\|) [^|]* \|$", row, table, flags=re.M)
    return before + mark + table + end + after


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
