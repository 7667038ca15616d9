"""Prints the table of a comparison's `runs.csv`, as docs/results has it, and draws its chart.

python -m tools.comparison docs/results/camvid_500.csv [docs/results/camvid_500.png]
python -m tools.comparison docs/results/field_tuning.json    what its `tuning.json` has tried
"""

import json
import math
import sys
from pathlib import Path
from statistics import fmean

from kdjax.recipes import BUILDS_ON
from kdjax.reporting import figures
from kdjax.reporting.figures import interval_dots
from kdjax.reporting.intervals import gain, gap_closed, paired_gains
from kdjax.reporting.results import MethodResult, RunSummary, plain_student, read_runs, teacher_of
from kdjax.reporting.tables import estimate_text, miou_text


def methods(runs: list[RunSummary]) -> list[MethodResult]:
    """Teacher, plain students, and the others by their gain."""
    grouped: dict[str, list[RunSummary]] = {}
    for run in runs:
        grouped.setdefault(run.method, []).append(run)
    order = ("teacher", "plain", "distilled")
    found = [MethodResult(method=m, role=runs[0].role, runs=runs) for m, runs in grouped.items()]
    return sorted(
        found, key=lambda r: (order.index(r.role), -r.miou if r.role == "distilled" else 0)
    )


def table(path: str) -> list[str]:
    """The lines of the table in Markdown, a row for each method, by mIoU on test.

    On val where no run has seen the test split. Columns of which nothing is known are left out.
    """
    by_split = {
        split: {result.method: result for result in methods(runs)}
        for split, runs in read_runs(path).items()
    }
    groups = [split for split in by_split if split.startswith("test/")]
    main = "test" if "test" in by_split else "val"
    header = ["run", main, "gain", "own effect", "gap closed, %"]
    for group in groups:
        header += [group.removeprefix("test/"), "gain there"]
    val = by_split.get("val") if main != "val" else None
    shown = by_split[main]
    timed = any(result.mean("step_processor_seconds") > 0 for result in shown.values())
    header += [*(["val"] if val else []), *(["s a step"] if timed else []), f"by seed, on {main}"]
    rows = [header]
    plain, teacher = (find(list(shown.values())) for find in (plain_student, teacher_of))
    for name, result in shown.items():
        # What the cache changes is counted over the same method with its teacher at hand.
        base = shown.get(BUILDS_ON.get(name) or name.removesuffix(", cached"))
        base = None if base is result else base
        own = f"{_gain(result, base)} on {base.method}" if base else "–"
        cells = [name, miou_text(result), _gain(result, plain), own]
        cells.append(estimate_text(gap_closed(result, plain, teacher), ".0f"))
        for group in groups:
            there = by_split[group]
            cells += [miou_text(there[name]), _gain(there[name], plain and there[plain.method])]
        if val:
            cells.append(miou_text(val[name]))
        if timed:
            seconds = result.mean("step_processor_seconds")
            cells.append("–" if math.isnan(seconds) else f"{seconds:.3f}")
        cells.append(" ".join(f"{100 * run.miou:.1f}" for run in result.runs))
        rows.append(cells)
    known = [column for column in zip(*rows, strict=True) if set(column[1:]) != {"–"}]
    header, *rows = map(list, zip(*known, strict=True))
    return _lines([header, ["---", *["---:"] * (len(header) - 1)], *rows])


def tuning_table(path: str) -> list[str]:
    """The lines of the table of weights tried on validation, a row for each method.

    mIoU in %, the mean over the tuning seeds by the factor of the method's weights; the factor that
    was taken in bold. Learning rates, which the plain student alone tries, are not in it.
    """
    tuned = [entry for entry in json.loads(Path(path).read_text()) if entry["method"] != "plain"]
    factors = sorted({tried["weight_factor"] for entry in tuned for tried in entry["tried"]})
    rows = [["weights times", *(f"{f:g}" for f in factors)], ["---", *["---:"] * len(factors)]]
    for entry in tuned:
        scores = {t["weight_factor"]: 100 * fmean(t["val_miou"]) for t in entry["tried"]}
        taken = entry["taken"]["weight_factor"]
        cells = [f"**{scores[f]:.2f}**" if f == taken else f"{scores[f]:.2f}" for f in factors]
        rows.append([entry["method"], *cells])
    return _lines(rows)


def _lines(rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in rows]


def _gain(result: MethodResult, over: MethodResult | None) -> str:
    return "–" if result.role == "teacher" else estimate_text(gain(result, over), "+.2f")


def draw(path: str, chart: str) -> None:
    """Draws what each method gains over the plain student on test."""
    test = methods(read_runs(path)["test"])
    plain = plain_student(test)
    assert plain is not None
    others = [result for result in test if result.role != "teacher" and result is not plain]
    figure = interval_dots(
        {result.method: gain(result, plain) for result in others},
        {result.method: paired_gains(result, plain) for result in others},
        "Gain on test (points of mIoU)",
        figures.method_colors([result.method for result in test], "teacher", plain.method),
        line_at=0.0,
    )
    figure.savefig(chart, dpi=160, facecolor="white")


def main(path: str, chart: str | None = None) -> None:
    """Prints the table and, where it is asked for, draws the chart."""
    print("\n".join(tuning_table(path) if path.endswith(".json") else table(path)))
    if chart:
        draw(path, chart)


if __name__ == "__main__":
    main(*sys.argv[1:])
