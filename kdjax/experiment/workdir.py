"""The directory of a run: its files, its lock, and the config that it belongs to."""

import contextlib
import json
import math
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from kdjax import config as configuration
from kdjax.config import Config, RunOptions
from kdjax.models import serialization
from kdjax.models.options import IMAGENET_WEIGHTS
from kdjax.reporting.results import COLUMNS, RunSummary
from kdjax.reporting.writers import read_metrics
from kdjax.utils import processes
from kdjax.utils.errors import UserError
from kdjax.utils.files import absolute, reachable, read_json, to_json, write_atomically
from kdjax.utils.lock import Lock

# The keys of a config whose values are paths, besides the `data_dir` of every set.
CHECKPOINTS = ("student.checkpoint", "student.backbone", "teacher.backbone", "teacher.checkpoint")
PATHS = (*CHECKPOINTS, "teacher.cache", "teacher.logits")
TEACHER = "teacher.checkpoint"
_NO_SCORES: dict[str, Any] = {"miou": None, "pixel_accuracy": None, "agreement": None, "iou": []}
# Sections of every config, which tell it from the config.json of another program.
_SECTIONS = {"data", "student", "teacher", "terms", "optimizer"}


class Workdir:
    """The files of one run, local or `gs://`.

    Args:
      path: the directory. Nothing is written before `claim`.

    Raises:
      UserError: if its store does not answer.
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
        self.examples = self.path / "examples.png"

    @contextlib.contextmanager
    def hold(self, patience: float = 0.0) -> Iterator[None]:
        """Locks the directory for all processes of this run.

        Args:
          patience: seconds to wait for another run to end.

        Raises:
          UserError: if another run is active there, which the message names, or if the path cannot
            be written to.
        """
        lock = Lock(
            self.path / ".lock",
            f"--workdir {self.path}",
            "wait for its end, stop it, or choose another --workdir",
        )

        def take() -> None:
            try:
                lock.acquire(patience)
            except OSError as error:
                reason = error.strerror or str(error)
                raise UserError(f"cannot write to --workdir {self.path}: {reason}") from error

        try:
            processes.lead(take)
            yield
        finally:
            lock.release()

    def claim(self, options: RunOptions) -> None:
        """Writes the config, or checks that the directory was made with the same one.

        Paths are equal if they lead to the same file, and teachers if they have the same weights,
        because a comparison may be moved or called by another path. All processes check, and the
        first one writes.

        Raises:
          UserError: if the config differs, or the path cannot be written to.
        """
        if self.config.exists():
            there, here = self._differences(options)
            if changed := sorted(there):
                listed = ", ".join(
                    f"config.{key} {there.get(key)!r} there, {here.get(key)!r} now"
                    for key in changed[:3]
                )
                more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
                raise UserError(
                    f"{self.path} holds a run of another config ({listed}{more}); choose another "
                    "workdir, or replace that run by kdjax.train(..., overwrite=True)"
                )
            return
        if not processes.leads():
            return
        try:
            write_atomically(self.config, options.stored)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f"cannot write to --workdir {self.path}: {reason}") from error

    def has_fewer_steps(self, options: RunOptions) -> bool:
        """Returns True if the run differs from `options` only in having fewer steps."""
        if not self.config.exists():
            return False
        there, here = self._differences(options)
        return there.keys() == {"steps"} and there["steps"] < here["steps"]

    def extend(self, options: RunOptions) -> None:
        """Gives the run the steps of `options`. It is then unfinished and has no report."""
        for path in (self.result, self.report):
            path.unlink(missing_ok=True)
        write_atomically(self.config, options.stored)

    def check_clear(self, options: RunOptions) -> None:
        """Checks that `clear` removes a run of kdjax, and no network that `options` begins with.

        Raises:
          UserError: if `clear` would remove something else.
        """
        if not self.config.exists():
            return
        try:
            there = json.loads(self.config.read_text())
        except ValueError:
            there = None
        if not (isinstance(there, dict) and there.keys() >= _SECTIONS):
            raise UserError(
                f"{self.config} is not the config of a run; overwrite=True removes runs of kdjax "
                "and nothing else, so choose another workdir"
            )
        serialization.check_output(self.student)
        here = absolute(self.path)
        for key in CHECKPOINTS:
            section, name = key.split(".")
            path = getattr(getattr(options, section), name)
            if path not in ("", IMAGENET_WEIGHTS) and here in (
                absolute(path),
                *absolute(path).parents,
            ):
                raise UserError(
                    f"config.{key} is {path}, of the run that overwrite=True would remove; choose "
                    "another workdir"
                )

    def clear(self) -> None:
        """Removes the files of the run, and nothing else.

        Raises:
          UserError: if a file cannot be removed.
        """
        if not self.config.exists():
            return
        files = (self.result, self.diverged, self.report, self.examples, self.metrics)
        folders = (self.tensorboard, self.profile, self.checkpoints, self.student)
        # The config last, so that the rest of an interrupted removal is still known to be a run.
        for path in (*files, *folders, self.config):
            try:
                if path in folders and path.is_dir() and not os.path.islink(path):
                    path.rmtree()
                else:
                    path.unlink(missing_ok=True)
            except OSError as error:
                raise UserError(f"cannot remove {path}: {error.strerror or error}") from error

    def read_options(self) -> RunOptions:
        """Returns the config of the run, without its terms and its comparison.

        Terms of an earlier version, or of a user's module that is gone, must not keep a student
        from being evaluated.

        Raises:
          UserError: if the directory holds no valid config.
        """
        config, without = self._read_config(), configuration.default()
        config.terms, config.compare = without.terms, without.compare
        return configuration.typed(config)

    def write_result(self, result: dict[str, Any]) -> None:
        """Writes the result. A directory with a result holds a finished run."""
        write_atomically(self.result, to_json(result))

    def is_finished(self) -> bool:
        """Returns True if the result can be read and the student is complete."""
        try:
            return "scores" in self.read_result() and serialization.is_complete(self.student)
        except (UserError, OSError):
            return False

    def check_can_be_finished(self) -> None:
        """Checks that a run with a damaged result or student has a checkpoint to finish it from.

        Raises:
          UserError: if it has none.
        """
        if not any(path.name.isdecimal() for path in self.checkpoints.glob("*")):
            raise UserError(
                f"{self.result} or {self.student} is damaged, and there is no checkpoint to finish "
                f"the run from; remove {self.path} to train again"
            )

    def read_result(self) -> dict[str, Any]:
        """Returns the result. None stands for NaN.

        Raises:
          UserError: if the file is damaged.
        """
        return read_json(self.result)

    def data_fingerprint(self) -> str | None:
        """Returns the fingerprint of the data of a finished run; None if it is not known."""
        try:
            return self.read_result().get("data")
        except (UserError, OSError):
            return None

    def note_divergence(self, reason: str) -> None:
        """Writes why the run ended without a result."""
        write_atomically(self.diverged, to_json({"reason": reason}))

    def why_diverged(self) -> str:
        """Returns the reason that `note_divergence` wrote."""
        return read_json(self.diverged)["reason"]

    def miou(self, split: str) -> float:
        """Returns the mIoU, or NaN if the run diverged or no pixel has a label."""
        if self.diverged.exists():
            return math.nan
        return _number(self.read_result()["scores"][split]["miou"])

    def history(self) -> list[dict[str, Any]]:
        """Returns the log of the run, a record for each line, oldest first."""
        return read_metrics(self.metrics) if self.metrics.exists() else []

    def summary(self, split: str) -> RunSummary:
        """Returns the finished run, with its scores on a split, for tables and reports.

        Without scores, as of a student without class scores, they are NaN.
        """
        result = self.read_result()
        scores = result["scores"].get(split, _NO_SCORES)
        # Results of older versions lack some fields.
        fields: dict[str, Any] = {field: result.get(field) for field in COLUMNS}
        return RunSummary(
            **fields,
            miou=_number(scores["miou"]),
            pixel_accuracy=_number(scores["pixel_accuracy"]),
            agreement=scores["agreement"],
            precision=_of_object(scores.get("precision")),
            recall=_of_object(scores.get("recall")),
            boundary_iou=_mean(scores.get("boundary_iou")),
            boundary_f1=_mean(scores.get("boundary_f1")),
            class_iou=[_number(value) for value in scores["iou"]],
            history=self.history(),
        )

    def _read_config(self) -> Config:
        if not self.config.exists():
            raise UserError(f"{self.path}: no run here (config.json is missing)")
        try:
            return configuration.from_json(self.config.read_text())
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{self.config}: damaged, or not the config of a run") from error

    def _differences(self, options: RunOptions) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the values that differ, by key: those stored, and those of `options`."""
        there, here = _leaves(configuration.to_json(self._read_config())), _leaves(options.stored)
        changed = [
            key
            for key in there.keys() | here.keys()
            if not self._alike(key, there.get(key), here.get(key), options.teacher.options)
        ]
        return {key: there.get(key) for key in changed}, {key: here.get(key) for key in changed}

    def _alike(self, key: str, there: Any, here: Any, how: Mapping[str, Any]) -> bool:
        """Returns True if a stored value has the meaning of the present one."""
        if there == here:
            return True
        is_path = key in PATHS or key.endswith("data_dir")
        if not is_path or not (there and here) or IMAGENET_WEIGHTS in (there, here):
            return False
        if absolute(there) == absolute(here):
            return True
        # If nothing tells the weights of the teacher, the run has no checkpoint, or a checkpoint
        # that names them itself and refuses another teacher.
        return key == TEACHER and self._teacher_fingerprint(there, how) in (
            None,
            serialization.fingerprint_in(here, how),
        )

    def _teacher_fingerprint(self, path: str, how: Mapping[str, Any]) -> str | None:
        """Returns the fingerprint of the run's teacher, given its path and options."""
        if self.result.exists():
            _, fingerprint = self.read_result().get("teacher") or (None, None)
            return fingerprint
        return serialization.fingerprint_in(path, how)


def _of_object(values: Sequence[float | None] | None) -> float | None:
    """Returns the score of the second of two classes, if there is one."""
    return values[1] if values else None


def _mean(values: Sequence[float | None] | None) -> float | None:
    """Returns the mean of the known scores of classes; None if there is none."""
    known = [value for value in values or () if value is not None]
    return statistics.fmean(known) if known else None


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _leaves(text: str) -> dict[str, Any]:
    """Returns the values of a config by dotted key."""

    def flat(tree: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        leaves: dict[str, Any] = {}
        for key, value in tree.items():
            if isinstance(value, dict) and value:
                leaves |= flat(value, f"{prefix}{key}.")
            else:
                leaves[prefix + key] = value
        return leaves

    return flat(json.loads(text), "")
