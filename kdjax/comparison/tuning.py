"""Settings tried on validation before anything is compared, and the choice among them.

The plain student tries learning rates and weight decays. Every method then takes its choice and
tries factors of its own terms' weights: as many runs for one method as for any other, none on the
test split, and with seeds that are not those of the comparison.
"""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kdjax.config import Config
from kdjax.distillation import term
from kdjax.utils import files

PLAIN = "plain student"
EQUAL_TIME = "plain student, equal time"


class Setting(NamedTuple):
    """What may differ between two runs of one method."""

    learning_rate: float
    weight_decay: float
    weight_factor: float = 1.0

    def apply(self, config: Config) -> None:
        """Sets a run's config to it."""
        config.optimizer.learning_rate = self.learning_rate
        config.optimizer.weight_decay = self.weight_decay
        for entry in config.terms.values():
            whole = term(entry.loss)
            for key in ("weight", "final_weight"):
                entry[key] = self.weight_factor * entry.get(key, whole[key])


def plain_settings(config: Config) -> list[Setting]:
    """What the plain student tries; a single one where there is nothing to try."""
    rates = config.compare.learning_rates or (config.optimizer.learning_rate,)
    decays = config.compare.weight_decays or (config.optimizer.weight_decay,)
    return [Setting(*pair) for pair in itertools.product(rates, decays)]


def method_settings(config: Config, plain: Setting) -> list[Setting]:
    """What a method tries."""
    factors = config.compare.weight_factors or (1.0,)
    return [plain._replace(weight_factor=factor) for factor in factors]


def outlook(config: Config, seeds: Sequence[int], teacher_steps: int | None) -> str:
    """What a comparison trains one after the other, for whoever waits for it.

    Args:
      config: of the comparison.
      seeds: those of the runs that are reported.
      teacher_steps: None where no teacher is trained.
    """
    methods = config.compare.methods
    untuned = Setting(config.optimizer.learning_rate, config.optimizer.weight_decay)
    tried = [
        len(method_settings(config, untuned) if terms else plain_settings(config))
        for terms in methods.values()
    ]
    choosing = sum(count for count in tried if count > 1) * len(config.compare.tuning_seeds)
    runs = len(methods) * len(seeds)
    parts = []
    if teacher_steps is not None:
        parts.append(f"a teacher of {teacher_steps} steps")
    if choosing:
        parts.append(f"{choosing} runs that choose settings")
    plural = "s" if runs > 1 else ""
    parts.append(f"{runs} run{plural} of {config.steps} steps ({', '.join(methods)})")
    if asks_equal_time(config):
        parts.append("the plain student for as long as teaching took (equal_time)")
    return (
        f"trains {', then '.join(parts)}; each run says how long it has left, and the same command "
        "continues what was stopped"
    )


def setting_name(setting: Setting, among: Sequence[Setting]) -> str:
    """What tells a setting from the others, as a directory may be called."""
    values = {
        "lr": setting.learning_rate,
        "decay": setting.weight_decay,
        "weight_x": setting.weight_factor,
    }
    varied = [len(set(column)) > 1 for column in zip(*among, strict=True)]
    return "_".join(
        f"{key}{value:g}" for (key, value), told in zip(values.items(), varied, strict=True) if told
    )


class TuningResult(NamedTuple):
    """What was tried for one method, and what was taken.

    Attributes:
      method: its name.
      tried: the settings.
      scores: mIoU on validation by setting and seed; NaN for a run that diverged. Empty where only
        one setting was to be had.
    """

    method: str
    tried: Sequence[Setting]
    scores: Sequence[Sequence[float]]

    def means(self) -> list[float]:
        """Mean over the seeds by setting; NaN where one of them diverged."""
        return [statistics.fmean(row) for row in self.scores]

    def best(self) -> Setting | None:
        """The setting of the highest mean, the first of equal ones; None where all diverged."""
        if not self.scores:
            return self.tried[0]
        found = [(mean, index) for index, mean in enumerate(self.means()) if not math.isnan(mean)]
        if not found:
            return None
        return self.tried[max(found, key=lambda pair: (pair[0], -pair[1]))[1]]

    def edges(self) -> list[str]:
        """The settings whose best value is the smallest or the largest that was tried."""
        best = self.best()
        if best is None:
            return []
        columns = {
            field: sorted({setting[index] for setting in self.tried})
            for index, field in enumerate(Setting._fields)
        }
        return [
            field
            for field, values in columns.items()
            if len(values) > 1 and getattr(best, field) in (values[0], values[-1])
        ]

    def describe(self) -> str:
        """One line: every mean, and what was taken."""
        best, means = self.best(), self.means()
        texts = [
            f"{setting_name(setting, self.tried)} {_percent(mean)}"
            for setting, mean in zip(self.tried, means, strict=True)
        ]
        line = f"{self.method}: val mIoU % {', '.join(texts)}"
        if best is None:
            return f"{line}; all diverged"
        line = f"{line}; taken: {setting_name(best, self.tried)}"
        if edges := self.edges():
            line += f" (at the end of what was tried of {' and '.join(edges)})"
        return line

    def to_dict(self) -> dict[str, Any]:
        """The method, what was tried with its scores, and what was taken."""
        best = self.best()
        return {
            "method": self.method,
            "tried": [
                {**setting._asdict(), "val_miou": scores}
                for setting, scores in zip(self.tried, self.scores, strict=True)
            ],
            "taken": best and best._asdict(),
        }


def asks_equal_time(config: Config) -> bool:
    """Returns True if a comparison trains a plain student for as long as its costliest method."""
    kinds = {bool(terms) for terms in config.compare.methods.values()}
    return config.compare.equal_time and len(kinds) > 1


def step_costs(results: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[str, dict[str, float]]:
    """Finds what a step of each method costs: the median over its runs.

    Args:
      results: of finished runs, each with the name of its method.

    Returns:
      The key of the results that holds the cost, and the seconds of a step by method. A method is
      missing if none of its runs measured a step.
    """
    # On an accelerator the processor only waits. JAX is not asked for the platform here: it would
    # take the devices away from runs in processes of their own.
    on_cpu = all(result.get("platform", "cpu") == "cpu" for _, result in results)
    unit = "step_processor_seconds" if on_cpu else "step_seconds"
    seconds: dict[str, list[float]] = {}
    for method, result in results:
        if (value := result.get(unit)) is not None:
            seconds.setdefault(method, []).append(value)
    return unit, {method: statistics.median(values) for method, values in seconds.items()}


def equal_time(unit: str, costs: Mapping[str, float], steps_each: int) -> tuple[int | None, str]:
    """Finds how many steps of the plain student cost as much as all steps of the costliest method.

    Args:
      unit: as `step_costs` returns it.
      costs: of a step, by method.
      steps_each: the steps of every run.

    Returns:
      The steps and a line that explains them. The steps are None if the plain student needs no
      longer training, or if its cost is not known; the line then says why.
    """
    if PLAIN not in costs or len(costs) < 2:
        return None, (
            f"{EQUAL_TIME}: not trained, because the cost of a step is known only for "
            f"{', '.join(costs) or 'no method'}"
        )
    costliest = max(costs, key=lambda method: costs[method])
    steps = round(steps_each * costs[costliest] / costs[PLAIN])
    what = unit.removeprefix("step_").replace("_", " ")
    if steps <= steps_each:
        highest = max(cost for method, cost in costs.items() if method != PLAIN)
        return None, (
            f"{EQUAL_TIME}: not trained, because no method takes longer than the plain student "
            f"({highest:.3g} {what} a step at most; the plain student's take {costs[PLAIN]:.3g})"
        )
    return steps, (
        f"{EQUAL_TIME}: {steps:,} steps, which take as long as the {steps_each:,} of "
        f"{costliest} ({costs[costliest]:.3g} {what} a step; the plain student's take "
        f"{costs[PLAIN]:.3g})"
    )


def to_json(choices: Sequence[TuningResult]) -> str:
    """All choices, as a comparison keeps them."""
    return files.to_json([choice.to_dict() for choice in choices])


def _percent(share: float) -> str:
    return "diverged" if math.isnan(share) else f"{100 * share:.2f}"
