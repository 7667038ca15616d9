"""Compares methods at equal cost of training."""

import math
import statistics
from collections.abc import Sequence

import numpy as np

from kdjax.reporting import intervals
from kdjax.reporting.figures import CostCurve
from kdjax.reporting.results import MethodResult, plain_student

# Costs within this factor count as equal.
EQUAL = 1.1


def unit_of(methods: Sequence[MethodResult]) -> str:
    """Returns the field of `RunSummary` that holds the cost of a step.

    Processor time is the cost on a CPU. Beside an accelerator, the processor only waits.
    """
    platforms = {run.platform or "cpu" for result in methods for run in result.runs}
    return "step_processor_seconds" if platforms == {"cpu"} else "step_seconds"


def step_cost(result: MethodResult, unit: str) -> float | None:
    """Returns the median cost of a step over the seeds that measured it; None if none did."""
    values = [value for run in result.runs if (value := getattr(run, unit)) is not None]
    return statistics.median(values) if values else None


def training_cost(result: MethodResult, unit: str) -> float | None:
    """Returns the seconds of all steps of a run, without compilation and evaluations."""
    steps, cost = result.runs[0].steps, step_cost(result, unit)
    return None if steps is None or cost is None else steps * cost


def equal_cost_student(
    result: MethodResult, methods: Sequence[MethodResult], unit: str
) -> MethodResult | None:
    """Returns the plain student whose training costs as much as that of a method.

    Returns:
      The cheapest plain student that costs at least as much, up to `EQUAL`; None if there is none.
    """
    cost = training_cost(result, unit)
    if cost is None:
        return None
    known = [
        (spent, student)
        for student in methods
        if student.role == "plain" and (spent := training_cost(student, unit)) is not None
    ]
    enough = [pair for pair in known if pair[0] * EQUAL >= cost]
    return min(enough, key=lambda pair: pair[0])[1] if enough else None


def verdict(methods: Sequence[MethodResult], split: str) -> str:
    """Says in one sentence which method is ahead of a plain student of equal cost.

    It names the largest gain whose interval is above zero; if there is none, the largest gain.

    Returns:
      The sentence; empty if there is no plain student, or the costs are unknown.
    """
    unit = unit_of(methods)
    found = []
    for result in methods:
        if result.role == "distilled" and not math.isnan(result.miou):
            student = equal_cost_student(result, methods, unit)
            if student is not None:
                found.append((intervals.gain(result, student), result, student))
    if not found or plain_student(methods) is None:
        return ""
    ahead = [entry for entry in found if entry[0].low is not None and entry[0].low > 0]
    best, result, student = max(ahead or found, key=lambda entry: entry[0].value)
    points = f"{100 * best.value:+.1f}"
    if best.low is not None and best.high is not None:
        points += f" [{100 * best.low:+.1f}, {100 * best.high:+.1f}]"
    budget = (
        f"At the cost of {result.method} ({training_cost(result, unit):,.0f} "
        f"{unit.removeprefix('step_').replace('_', ' ')}, {_ratio(result, methods, unit)})"
    )
    where = f"{points} points of mIoU on {split} over the {student.method}"
    if best.low is None:
        return f"{budget}, the gain is {where}. One seed each: the difference may be chance."
    if best.low > 0:
        return f"{budget}, {result.method} is ahead: {where}."
    return f"{budget}, no method is ahead with an interval above zero. The best gain is {where}."


def _ratio(result: MethodResult, methods: Sequence[MethodResult], unit: str) -> str:
    plain = plain_student(methods)
    cost, base = step_cost(result, unit), plain and step_cost(plain, unit)
    return f"{cost / base:.2f} times a plain step" if cost and base else "unknown cost of a step"


def cost_curves(methods: Sequence[MethodResult], metric: str, unit: str) -> dict[str, CostCurve]:
    """Returns for each method its mean metric against the cost so far.

    Args:
      methods: the methods.
      metric: the name of a logged metric.
      unit: from `unit_of`.
    """
    curves = {}
    for result in methods:
        cost, seeds = step_cost(result, unit), result.series(metric)
        if cost is None or not seeds:
            continue
        by_step = [dict(zip(*curve, strict=True)) for curve in seeds]
        steps = [step for step in by_step[0] if all(step in seed for seed in by_step)]
        values = np.array([[seed[step] for seed in by_step] for step in steps])
        mean = values.mean(axis=1)
        low, high = intervals.mean_interval(values) if values.shape[1] > 1 else (None, None)
        curves[result.method] = CostCurve(cost * np.array(steps), mean, low, high)
    return curves
