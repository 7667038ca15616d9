"""Plain students that train for as long as the methods: the gain of time alone."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from kdjax.config import Config
from kdjax.reporting.costs import EQUAL
from kdjax.utils import processes
from kdjax.utils.files import read_json, to_json, write_atomically

PLAIN = "plain student"
# Methods whose costs differ by less than this factor share a plain student.
SHARED = 1.25


class LongerStudent(NamedTuple):
    """A plain student with more steps.

    Attributes:
      name: its name in tables.
      steps: its steps.
      reason: a line that explains the steps.
    """

    name: str
    steps: int
    reason: str


def is_asked_for(config: Config) -> bool:
    """Returns True if a comparison has methods to compare with longer plain students."""
    compare = config.compare
    kinds = {bool(terms or compare.changes.get(name)) for name, terms in compare.methods.items()}
    return compare.equal_time and len(kinds) > 1


def longer_students(
    path: epath.Path, results: Sequence[tuple[str, Mapping[str, Any]]], steps_each: int
) -> tuple[list[LongerStudent], str]:
    """Finds how many steps of the plain student cost as much as training each method.

    The cost of each method's step is measured once and kept in a file, so that seeds that are added
    later have as many steps.

    Args:
      path: the file.
      results: of the finished runs, each with the name of its method.
      steps_each: the steps of every run.

    Returns:
      The students, and a line on the methods that cost no more than the plain student.
    """
    unit, measured = step_costs(results)
    kept = read_json(path).get(unit, {}) if path.exists() else {}
    costs = measured | kept
    students, line = plan(unit, {method: costs[method] for method in measured}, steps_each)
    content = to_json({"steps": {student.name: student.steps for student in students}, unit: costs})
    processes.lead(lambda: write_atomically(path, content))
    return students, line


def step_costs(results: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[str, dict[str, float]]:
    """Returns the key of the results that holds the cost of a step, and the cost by method.

    The cost is the median over the runs. A method is missing if none of its runs measured it.
    """
    # Beside an accelerator, the processor only waits. Asking JAX for the platform would take the
    # devices away from runs in other processes.
    on_cpu = all(result.get("platform", "cpu") == "cpu" for _, result in results)
    unit = "step_processor_seconds" if on_cpu else "step_seconds"
    seconds: dict[str, list[float]] = {}
    for method, result in results:
        if (value := result.get(unit)) is not None:
            seconds.setdefault(method, []).append(value)
    return unit, {method: statistics.median(values) for method, values in seconds.items()}


def plan(unit: str, costs: Mapping[str, float], steps_each: int) -> tuple[list[LongerStudent], str]:
    """Returns the longer plain students, and a line on the other methods, as `longer_students`."""
    if PLAIN not in costs or len(costs) < 2:
        known = ", ".join(costs) or "no method"
        return [], f"No plain student of equal time: the cost of a step is known only for {known}."
    words = unit.removeprefix("step_").replace("_", " ")
    ratios = {method: cost / costs[PLAIN] for method, cost in costs.items() if method != PLAIN}
    cheap = [method for method, ratio in ratios.items() if ratio <= EQUAL]
    groups: list[list[str]] = []
    for method in sorted(ratios.keys() - {*cheap}, key=lambda name: -ratios[name]):
        if groups and ratios[groups[-1][0]] <= SHARED * ratios[method]:
            groups[-1].append(method)
        else:
            groups.append([method])
    students = []
    for group in groups:
        ratio = ratios[group[0]]
        # The name depends on the steps alone, so that a method can join without renaming runs.
        name = f"{PLAIN}, {ratio:.1f}x time"
        steps = round(steps_each * ratio)
        reason = (
            f"{name}: {steps:,} steps, which take as long as the {steps_each:,} of {group[0]} "
            f"({costs[group[0]]:.3g} {words} a step; the plain student's take {costs[PLAIN]:.3g})"
        )
        if group[1:]:
            reason += f"; it also stands for {', '.join(group[1:])}"
        students.append(LongerStudent(name, steps, reason))
    line = ""
    if cheap:
        line = (
            f"A step of {', '.join(cheap)} costs at most {EQUAL:g} plain steps, so the plain "
            "student itself is the one of equal time."
        )
    return students, line
