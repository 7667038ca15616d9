"""Settings that a comparison tries on the validation split, and the choice among them.

The plain student tries learning rates and weight decays. Every method then uses its choice and
tries factors of the weights of its own terms. All methods get the same number of runs, none of
which sees the test split or uses a seed that is reported.
"""

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from kdjax.config import Config
from kdjax.distillation import term


class Setting(NamedTuple):
    """The values that may differ between two runs of one method."""

    learning_rate: float
    weight_decay: float
    weight_factor: float = 1.0

    def apply(self, config: Config) -> None:
        """Writes the setting into the config of a run."""
        config.optimizer.learning_rate = self.learning_rate
        config.optimizer.weight_decay = self.weight_decay
        for entry in config.terms.values():
            defaults = term(entry.loss)
            for key in ("weight", "final_weight"):
                entry[key] = self.weight_factor * entry.get(key, defaults[key])


def plain_settings(config: Config) -> list[Setting]:
    """Returns the settings that the plain student tries; a single one without tuning."""
    rates = config.compare.learning_rates or (config.optimizer.learning_rate,)
    decays = config.compare.weight_decays or (config.optimizer.weight_decay,)
    return [Setting(*pair) for pair in itertools.product(rates, decays)]


def method_settings(config: Config, plain: Setting) -> list[Setting]:
    """Returns the settings that a method tries, given the choice of the plain student."""
    factors = config.compare.weight_factors or (1.0,)
    return [plain._replace(weight_factor=factor) for factor in factors]


def setting_name(setting: Setting, among: Sequence[Setting]) -> str:
    """Returns a folder name with the values in which a setting differs from the others."""
    names = ("lr", "decay", "weight_x")
    return "_".join(
        f"{name}{value:g}"
        for name, value, column in zip(names, setting, zip(*among, strict=True), strict=True)
        if len(set(column)) > 1
    )


class TuningResult(NamedTuple):
    """The settings that a method tried, and their scores.

    Attributes:
      method: the name of the method.
      tried: the settings.
      scores: mIoU on validation by setting and seed; NaN for a run that diverged. Empty without
        tuning.
    """

    method: str
    tried: Sequence[Setting]
    scores: Sequence[Sequence[float]]

    def best(self) -> Setting | None:
        """Returns the first setting with the highest mean over the seeds; None if all diverged."""
        if not self.scores:
            return self.tried[0]
        means = {
            setting: mean
            for setting, mean in zip(self.tried, self._means(), strict=True)
            if not math.isnan(mean)
        }
        return max(means, key=lambda setting: means[setting], default=None)

    def edges(self) -> list[str]:
        """Returns the fields whose chosen value is the smallest or the largest that was tried."""
        best = self.best()
        if best is None:
            return []
        columns = zip(Setting._fields, best, zip(*self.tried, strict=True), strict=True)
        return [
            field
            for field, value, column in columns
            if len(set(column)) > 1 and value in (min(column), max(column))
        ]

    def describe(self) -> str:
        """Returns one line with every mean and the choice."""
        best = self.best()
        means = ", ".join(
            f"{setting_name(setting, self.tried)} "
            + ("diverged" if math.isnan(mean) else f"{100 * mean:.2f}")
            for setting, mean in zip(self.tried, self._means(), strict=True)
        )
        line = f"{self.method}: val mIoU % {means}"
        if best is None:
            return f"{line}; all diverged"
        line = f"{line}; chosen: {setting_name(best, self.tried)}"
        if edges := self.edges():
            line += f" (the smallest or largest {' and '.join(edges)} that was tried)"
        return line

    def to_dict(self) -> dict[str, Any]:
        """Returns the method, its settings with their scores, and the choice."""
        best = self.best()
        return {
            "method": self.method,
            "tried": [
                {**setting._asdict(), "val_miou": scores}
                for setting, scores in zip(self.tried, self.scores, strict=True)
            ],
            "taken": best and best._asdict(),
        }

    def _means(self) -> list[float]:
        return [statistics.fmean(row) for row in self.scores]
