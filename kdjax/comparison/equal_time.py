"""A plain student that trains for as long as the costliest method: what time alone is worth."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from kdjax.config import Config
from kdjax.utils import processes
from kdjax.utils.files import read_json, to_json, write_atomically

PLAIN = "plain student"
EQUAL_TIME = "plain student, equal time"


def is_asked_for(config: Config) -> bool:
    """Returns True if a comparison has methods to compare with the longer plain student."""
    kinds = {bool(terms) for terms in config.compare.methods.values()}
    return config.compare.equal_time and len(kinds) > 1


def equal_time(
    path: epath.Path, results: Sequence[tuple[str, Mapping[str, Any]]], steps_each: int
) -> tuple[int | None, str]:
    """Finds how many steps of the plain student cost as much as training the costliest method.

    The cost of each method's step is measured once and kept in a file, so that seeds that are added
    later have as many steps. A costlier method that is added later leads to more steps.

    Args:
      path: The file.
      results: Of the finished runs, each with the name of its method.
      steps_each: The steps of every run.

    Returns:
      The steps and a line that explains them. The steps are None if no method is costlier than the
      plain student, or if a cost is unknown.
    """
    unit, measured = step_costs(results)
    kept = read_json(path).get(unit, {}) if path.exists() else {}
    costs = measured | kept
    steps, why = longer_steps(unit, {method: costs[method] for method in measured}, steps_each)
    content = to_json({"steps": steps, unit: costs, "why": why})
    processes.lead(lambda: write_atomically(path, content))
    return steps, why


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


def longer_steps(unit: str, costs: Mapping[str, float], steps_each: int) -> tuple[int | None, str]:
    """Returns the steps of the longer plain student and a line on them, as `equal_time`."""
    if PLAIN not in costs or len(costs) < 2:
        known = ", ".join(costs) or "no method"
        return (
            None,
            f"{EQUAL_TIME}: not trained, because the cost of a step is known only for {known}",
        )
    costliest = max((name for name in costs if name != PLAIN), key=lambda name: costs[name])
    highest = costs[costliest]
    steps = round(steps_each * highest / costs[PLAIN])
    words = unit.removeprefix("step_").replace("_", " ")
    compared = f"{highest:.3g} {words} a step; the plain student's take {costs[PLAIN]:.3g}"
    if steps <= steps_each:
        return None, (
            f"{EQUAL_TIME}: not trained, because no method takes longer than the plain student "
            f"({costliest}: {compared})"
        )
    return steps, (
        f"{EQUAL_TIME}: {steps:,} steps, which take as long as the {steps_each:,} of {costliest} "
        f"({compared})"
    )
