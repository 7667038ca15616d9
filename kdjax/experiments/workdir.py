"""What lies where in the workdir of a run, and whose it is."""

import json
import math
import statistics
from typing import Any

from etils import epath

from kdjax import config as configuration
from kdjax import processes
from kdjax.config import Config
from kdjax.errors import UserError
from kdjax.paths import reachable
from kdjax.reporting.files import write_atomically
from kdjax.reporting.results import RunSummary
from kdjax.reporting.writers import read_metrics

SUMMARY_FIELDS = (
    "role",
    "method",
    "seed",
    "steps",
    "learning_rate",
    "parameters",
    "seconds",
    "images_per_second",
    "step_flops",
    "step_bytes",
)


class Workdir:
    """The files of one run, local or `gs://`.

    Args:
      path: the directory; nothing is written before `claim`.

    Raises:
      UserError: when its store does not answer.
    """

    def __init__(self, path: epath.PathLike):
        self.path = reachable(path)
        self.config = self.path / "config.json"
        self.result = self.path / "result.json"
        self.diverged = self.path / "diverged.json"
        self.metrics = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.profile = self.path / "profile"
        self.checkpoints = self.path / "checkpoints"
        self.student = self.path / "student"
        self.report = self.path / "report.html"

    def claim(self, config: Config) -> None:
        """Writes the config, or checks that it is the one that the workdir was made with.

        Among several processes all check and the first writes.

        Raises:
          UserError: naming the keys that differ; or when the path cannot be written to.
        """
        text = configuration.to_json(config)
        if self.config.exists():
            there, here = _leaves(json.loads(self.config.read_text())), _leaves(json.loads(text))
            changed = [
                key for key in sorted(there.keys() | here.keys()) if there.get(key) != here.get(key)
            ]
            if changed:
                listed = ", ".join(
                    f"config.{key} {there.get(key)!r} there, {here.get(key)!r} now"
                    for key in changed[:3]
                )
                more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
                raise UserError(
                    f"{self.path} holds a run of another config ({listed}{more}); choose another "
                    "--workdir"
                )
            return
        if not processes.leads():
            return
        try:
            write_atomically(self.config, text)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f"cannot write to --workdir {self.path}: {reason}") from error

    def read_config(self) -> Config:
        """The config of the run that the workdir holds.

        Raises:
          UserError: when it holds none.
        """
        if not self.config.exists():
            raise UserError(f"{self.path}: no run here (config.json is missing)")
        return configuration.from_json(self.config.read_text())

    def write_result(self, result: dict[str, Any]) -> None:
        """Writes what the run came to; a workdir with a result is a finished one."""
        write_atomically(self.result, json.dumps(result, indent=2) + "\n")

    def note_divergence(self, reason: str) -> None:
        """Writes why the run ended without a result."""
        write_atomically(self.diverged, json.dumps({"reason": reason}, indent=2) + "\n")

    def why_diverged(self) -> str:
        """The reason that `note_divergence` wrote."""
        return json.loads(self.diverged.read_text())["reason"]

    def miou(self, split: str) -> float:
        """MIoU of the finished run; NaN where it diverged."""
        if self.diverged.exists():
            return math.nan
        return json.loads(self.result.read_text())["scores"][split]["miou"]

    def median_rate(self) -> float:
        """Images per second, the median of what the run logged."""
        return statistics.median(self._logged("train/images_per_second"))

    def step_cost(self) -> dict[str, float | None]:
        """`kdjax.training.cost.step_cost` of the run's last start; None for what it did not say."""
        keys = ("step_flops", "step_bytes")
        return {key: next(reversed(self._logged(f"train/{key}")), None) for key in keys}

    def _logged(self, key: str) -> list[float]:
        return [record[key] for record in read_metrics(self.metrics) if key in record]

    def summary(self, split: str) -> RunSummary:
        """The finished run as tables and reports show it, with its scores on a split."""
        result = json.loads(self.result.read_text())
        scores = result["scores"][split]
        return RunSummary(
            # Not all fields are in results of older versions.
            **{field: result.get(field) for field in SUMMARY_FIELDS},
            miou=scores["miou"],
            pixel_accuracy=scores["pixel_accuracy"],
            agreement=scores["agreement"],
            class_iou=[math.nan if value is None else value for value in scores["iou"]],
            history=read_metrics(self.metrics) if self.metrics.exists() else (),
        )


def _leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            leaves |= _leaves(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = value
    return leaves
