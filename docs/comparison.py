"""Prints the table of docs/results/camvid.md from a finished comparison, and draws its chart.

python -m docs.comparison runs/camvid docs/results/camvid.png
"""

import pathlib
import sys

from kdjax.experiments.workdir import Workdir
from kdjax.reporting import figures
from kdjax.reporting.interval_figure import interval_dots
from kdjax.reporting.intervals import gain, gap_closed, paired_gains
from kdjax.reporting.results import MethodResult, RunSummary, plain_student, teacher_of
from kdjax.reporting.tables import estimate_text, miou_text

SPLITS = ("test", "test/unseen", "val")
HEADER = ("run", "test", "gain", "gap closed, %", "unseen", "gain there", "val", "by seed, on test")


def methods(root: pathlib.Path, split: str) -> list[MethodResult]:
    """Teacher, plain student, and the others by their gain."""
    grouped: dict[str, list[RunSummary]] = {}
    for result in [root / "teacher/result.json", *sorted(root.glob("*/seed*/result.json"))]:
        run = Workdir(result.parent).summary(split)
        grouped.setdefault(run.method, []).append(run)
    order = ("teacher", "plain", "taught")
    found = [MethodResult(method=m, role=runs[0].role, runs=runs) for m, runs in grouped.items()]
    return sorted(found, key=lambda result: (order.index(result.role), -result.miou))


def main(root: str, chart: str) -> None:
    """Prints a row for each method, by mIoU on test."""
    by_split = {split: methods(pathlib.Path(root), split) for split in SPLITS}
    test = by_split["test"]
    plain, teacher = plain_student(test), teacher_of(test)
    rows = [HEADER, ["---", *["---:"] * (len(HEADER) - 1)]]
    for result in test:
        val, unseen = (
            next(r for r in by_split[split] if r.method == result.method)
            for split in ("val", "test/unseen")
        )
        taught = result.role == "taught"
        rows.append(
            [
                result.method,
                miou_text(result),
                estimate_text(gain(result, plain), "+.2f") if taught else "–",
                estimate_text(gap_closed(result, plain, teacher), ".0f") if taught else "–",
                miou_text(unseen),
                estimate_text(gain(unseen, plain_student(by_split["test/unseen"])), "+.2f")
                if taught
                else "–",
                miou_text(val),
                " ".join(f"{100 * run.miou:.1f}" for run in result.runs),
            ]
        )
    for cells in rows:
        print("| " + " | ".join(cells) + " |")
    if plain:
        taught = [result for result in test if result.role == "taught"]
        figure = interval_dots(
            {result.method: gain(result, plain) for result in taught},
            {result.method: paired_gains(result, plain) for result in taught},
            "Gain on test (points of mIoU)",
            figures.method_colors([result.method for result in test], "teacher", plain.method),
            line_at=0.0,
        )
        figure.savefig(chart, dpi=160, facecolor="white")


if __name__ == "__main__":
    main(*sys.argv[1:])
