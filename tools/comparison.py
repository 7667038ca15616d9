"""Prints the table of a comparison's `runs.csv` as in docs/results, and draws its chart.

python -m tools.comparison docs/results/camvid_500.csv [docs/results/camvid_500.png]
python -m tools.comparison docs/results/field_tuning.json    the settings of its `tuning.json`
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from kdjax.recipes import BUILDS_ON
from kdjax.reporting import figures
from kdjax.reporting.figures import interval_dots
from kdjax.reporting.intervals import gain, paired_gains
from kdjax.reporting.results import Report, RunSummary, by_method, plain_student, read_runs
from kdjax.reporting.tables import estimate_text, markdown_lines, method_rows, miou_text

ROLES = ("teacher", "plain", "distilled")


def rows_by_method(runs: Sequence[RunSummary]) -> dict[str, dict[str, Any]]:
    """Returns the rows of the table: teacher, plain students, and the others by their mIoU."""
    report = Report(
        title="",
        subtitle="",
        split="",
        runs=runs,
        class_names=(),
        palette=np.zeros((0, 3), np.uint8),
        builds_on={run.method: base_of(run.method) for run in runs},
    )

    def place(row: Mapping[str, Any]) -> tuple[int, float]:
        return ROLES.index(row["role"]), -row["miou"] if row["role"] == "distilled" else 0

    return {row["method"]: row for row in sorted(method_rows(report), key=place)}


def base_of(method: str) -> str:
    """Returns the method that another one builds on: without the cache, if it has one."""
    return BUILDS_ON.get(method) or method.removesuffix(", cached")


def table(path: str) -> list[str]:
    """Returns the lines of the Markdown table, a row for each method, by mIoU on test.

    If no run has seen the test split, the mIoU is that on val. Unknown columns are left out.
    """
    runs = read_runs(path)
    by_split = {split: rows_by_method(summaries) for split, summaries in runs.items()}
    groups = [split for split in by_split if split.startswith("test/")]
    main = "test" if "test" in by_split else "val"
    methods = {result.method: result for result in by_method(runs[main])}
    val = by_split.get("val") if main != "val" else None
    timed = any(result.mean("step_processor_seconds") > 0 for result in methods.values())
    header = ["run", main, "gain", "own effect", "gap closed, %"]
    for group in groups:
        header += [group.removeprefix("test/"), "gain there"]
    header += [*(["val"] if val else []), *(["s a step"] if timed else []), f"by seed, on {main}"]
    lines = [header]
    for name, row in by_split[main].items():
        own = estimate_text(row, "own_effect", "+.2f")
        own = own if own == "–" else f"{own} on {base_of(name)}"
        cells = [name, miou_text(row), _gain(row), own, estimate_text(row, "gap_closed", ".0f")]
        for group in groups:
            there = by_split[group][name]
            cells += [miou_text(there), _gain(there)]
        if val:
            cells.append(miou_text(val[name]))
        if timed:
            seconds = methods[name].mean("step_processor_seconds")
            cells.append("–" if np.isnan(seconds) else f"{seconds:.3f}")
        cells.append(" ".join(f"{100 * run.miou:.1f}" for run in methods[name].runs))
        lines.append(cells)
    known = [column for column in zip(*lines, strict=True) if set(column[1:]) != {"–"}]
    return markdown_lines([*zip(*known, strict=True)])


def tuning_table(path: str) -> list[str]:
    """Returns the lines of the table of weights tried on validation, a row for each method.

    The numbers are mIoU in percent by the factor of the method's weights: the means over the tuning
    seeds. The chosen factor is bold. The learning rates of the plain student are left out.
    """
    tuned = [entry for entry in json.loads(Path(path).read_text()) if entry["method"] != "plain"]
    factors = sorted({tried["weight_factor"] for entry in tuned for tried in entry["tried"]})
    rows = [["weights times", *(f"{f:g}" for f in factors)]]
    for entry in tuned:
        scores = {t["weight_factor"]: 100 * fmean(t["val_miou"]) for t in entry["tried"]}
        chosen = entry["taken"]["weight_factor"]
        cells = [f"**{scores[f]:.2f}**" if f == chosen else f"{scores[f]:.2f}" for f in factors]
        rows.append([entry["method"], *cells])
    return markdown_lines(rows)


def _gain(row: Mapping[str, Any]) -> str:
    return "–" if row["role"] == "teacher" else estimate_text(row, "vs_plain", "+.2f")


def draw(path: str, chart: str) -> None:
    """Draws the gain of each method over the plain student on test."""
    runs = read_runs(path)["test"]
    results = {result.method: result for result in by_method(runs)}
    methods = [results[name] for name in rows_by_method(runs)]
    plain = plain_student(methods)
    assert plain is not None
    others = [result for result in methods if result.role != "teacher" and result is not plain]
    figure = interval_dots(
        {result.method: gain(result, plain) for result in others},
        {result.method: paired_gains(result, plain) for result in others},
        "Gain on test (points of mIoU)",
        figures.method_colors([result.method for result in methods], "teacher", plain.method),
        line_at=0.0,
    )
    figure.savefig(chart, dpi=160, facecolor="white")


def main(path: str, chart: str | None = None) -> None:
    """Prints the table, and draws the chart if its path is given."""
    print("\n".join(tuning_table(path) if path.endswith(".json") else table(path)))
    if chart:
        draw(path, chart)


if __name__ == "__main__":
    main(*sys.argv[1:])
