"""The checkpoints of a run: the latest states and the best one by mIoU, written during training."""

import contextlib
import enum
import errno
import json
import logging
import operator
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies
from orbax.checkpoint.path import atomicity

from kdjax.models.network import arrays_by_path, is_random_key
from kdjax.models.serialization import local_checkpointer
from kdjax.training.checksum import checksum
from kdjax.training.step import TrainState
from kdjax.utils import processes
from kdjax.utils.errors import Transient, UserError, first_line
from kdjax.utils.files import (
    absolute,
    is_remote,
    may_pass,
    os_error_code,
    sync_directory,
    sync_tree,
    why_unwritable,
    write_atomically,
)

BEST_METRIC = "miou"
# The one before the latest is the fallback if the latest is damaged.
LATEST = 2
_DAMAGED = "damaged-"
# Orbax's name for the thread that writes a checkpoint.
_WRITER = "async_save"
# The time limit of a save. Orbax's own limit is twenty minutes.
SAVE_SECONDS = 600


class Damaged(UserError):
    """A checkpoint whose files are missing, cannot be decoded, or have the wrong checksum."""


class _DurablePath(atomicity.AtomicRenameTemporaryPath):
    """Makes the files of a checkpoint survive a power cut before and after they are renamed.

    Orbax deletes older checkpoints after this.
    """

    async def finalize(self) -> None:
        sync_tree(self.get())
        await super().finalize()
        # Orbax writes its last file during the call above.
        sync_tree(self.get_final())
        sync_directory(self.get_final().parent)


class Checkpoints:
    """The `checkpoints/` of a workdir.

    Args:
      directory: is created if it does not exist.
      identity: facts that the checkpoints depend on but do not hold, such as the teacher's
        fingerprint. A run does not continue from a checkpoint with another identity.

    Raises:
      UserError: if the directory cannot be written to.
    """

    def __init__(self, directory: epath.PathLike, identity: dict[str, Any]):
        self._directory = epath.Path(directory)
        # In the form in which it is read back from JSON.
        self._identity = json.loads(json.dumps(identity))
        self._failed = False
        logging.getLogger("absl").addFilter(self._filter_log)
        miou = operator.itemgetter(BEST_METRIC)
        best = policies.BestN(get_metric_fn=miou, n=1, keep_checkpoints_without_metrics=False)
        with self._writing():
            self._remarks = self._drop_damaged_scores()
            self._manager = ocp.CheckpointManager(
                absolute(self._directory),
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=policies.AnyPreservationPolicy(
                        [policies.LatestN(LATEST), best]
                    ),
                    best_fn=miou,
                    best_mode="max",
                    # Unfinished files of a killed process.
                    cleanup_tmp_directories=True,
                    temporary_path_class=None if is_remote(self._directory) else _DurablePath,
                    async_options=ocp.AsyncOptions(timeout_secs=SAVE_SECONDS),
                ),
            )

    @property
    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint."""
        return self._manager.latest_step()

    @property
    def best_step(self) -> int | None:
        """The step of the checkpoint with the highest mIoU; None if no checkpoint has a mIoU."""
        step = self._manager.best_step()
        return step if step is not None and self.is_scored(step) else None

    def is_scored(self, step: int) -> bool:
        """Returns True if a checkpoint has its mIoU."""
        return self._manager.metrics(step) is not None

    def save(self, step: int, state: TrainState, miou: float | None = None) -> None:
        """Starts to write a checkpoint, which counts once it is complete.

        If the checkpoint of the step exists without a mIoU, the mIoU is added to it.

        Raises:
          UserError: if this checkpoint, or the one before it, cannot be written.
          Transient: if the next try may succeed.
        """
        with self._writing():
            if step in self._manager.all_steps():
                if miou is not None and not self.is_scored(step):
                    self._add_score(step, miou)
                return
            identity = {
                "identity": self._identity,
                "checksum": checksum(state),
                "arrays": _description(_flat(state)),
            }
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(_flat(state)),
                    identity=ocp.args.JsonSave(identity),
                ),
                metrics=None if miou is None else {BEST_METRIC: miou},
                force=True,
            )

    def restore(self, step: int, target: TrainState) -> TrainState:
        """Reads a checkpoint into the shapes and shardings of `target`.

        The devices that wrote the checkpoint need not be those of `target`. No process waits for
        another one.

        Raises:
          Damaged: if files are missing or undecodable, or the checksum is wrong.
          Transient: if the store does not answer now.
          UserError: if the checkpoint belongs to another teacher, data set or train state, or its
            files cannot be read for another reason, such as missing permission.
        """
        with self._writing():
            self._manager.wait_until_finished()
        path, flat = self._directory / str(step), _flat(target)
        with _reading(path):
            found = json.loads((path / "identity" / "metadata").read_text())
            if not (isinstance(found, dict) and found.keys() >= {"identity", "checksum", "arrays"}):
                raise ValueError("identity/metadata holds something else")
        if differences := _differences(found["identity"], self._identity):
            raise UserError(
                f"{path} was made with {differences}; continue with what it was made with, or "
                "choose another --workdir"
            )
        if differences := _differences(found["arrays"], _description(flat)):
            raise UserError(
                f"{path} was made by other code: {differences}; put the network, terms, and "
                "optimizer back as they were, or choose another --workdir"
            )
        abstract = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
            for name, leaf in flat.items()
        }
        with _reading(path), local_checkpointer() as checkpointer:
            restored = checkpointer.restore(absolute(path / "state"), abstract)
        leaves = list(map(_like, jax.tree.leaves(target), map(restored.get, flat)))
        state = jax.tree.unflatten(jax.tree.structure(target), leaves)
        if checksum(state) != found["checksum"]:
            raise Damaged(f"{path}: this checkpoint is damaged (its checksum is wrong)")
        return state

    def restore_latest(self, target: TrainState) -> tuple[int, TrainState, list[str]]:
        """Reads the newest checkpoint that is not damaged; renames damaged ones.

        Returns:
          The step, the state, and a line about each file that was damaged. If there is no
          checkpoint, step 0 and `target`.

        Raises:
          UserError: if there are only damaged checkpoints, or as `restore`.
          Transient: as `restore`, or if another process could not read its part.
        """
        remarks: list[str] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            state, error = target, None
            try:
                state = self.restore(step, target)
            except (UserError, Transient) as raised:
                error = raised
            outcome = _worst_outcome(error)
            if outcome is _Outcome.READ:
                return step, state, self._remarks + remarks
            path = self._directory / str(step)
            if error and not isinstance(error, Damaged):
                raise error
            if outcome is _Outcome.FAILED:
                raise Transient(f"another process of the run cannot read {path}")
            remarks.append(str(error) if error else f"{path}: damaged for another process")
            self._set_aside(step)
        damaged = sorted(path.name for path in self._directory.glob(f"{_DAMAGED}[0-9]*"))
        if damaged:
            told = "; ".join(remarks) or f"{self._directory} holds only damaged checkpoints"
            raise UserError(
                f"{told}; no other is left. To use one of {', '.join(damaged)} all the same, "
                f"rename it to its number. To begin again at step 0, remove {self._directory}"
            )
        return 0, target, remarks

    def close(self, *, wait: bool = True) -> None:
        """Waits until everything is written.

        Args:
          wait: False after an error of this process alone. Orbax's threads may then wait for other
            processes, which wait for this one.

        Raises:
          UserError: if the last checkpoint cannot be written.
        """
        logging.getLogger("absl").removeFilter(self._filter_log)
        if self._failed or not (wait or jax.process_count() == 1):
            return
        with self._writing():
            self._manager.wait_until_finished()
        self._manager.close()

    def _filter_log(self, record: logging.LogRecord) -> bool:
        """Ends all processes if a save failed in this one, and drops a warning of Orbax.

        Orbax raises the error only at the next save. Until then, the other processes may wait for
        this save, and the main thread for the other processes.
        """
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, Exception) and record.threadName == _WRITER:
            processes.fail_from_thread(self._why_not_written(error))
        # Checkpoints between evaluations have no metrics.
        return "did not provide metrics" not in record.getMessage()

    def _add_score(self, step: int, miou: float) -> None:
        self._manager.wait_until_finished()
        if jax.process_index() == 0:
            write_atomically(
                self._directory / str(step) / "metrics" / "metrics",
                json.dumps({BEST_METRIC: miou}),
            )
        _wait_for_all()
        self._manager.reload()

    def _drop_damaged_scores(self) -> list[str]:
        """Renames scores that cannot be read; their checkpoints then count as unscored."""
        remarks = []
        if jax.process_index() == 0:
            for path in sorted(self._directory.glob("*/metrics/metrics")):
                step = path.parent.parent
                if not step.name.isdecimal():
                    continue
                try:
                    float(json.loads(path.read_text())[BEST_METRIC])
                except (ValueError, TypeError, KeyError):
                    path.parent.rename(self._free_name(f"{_DAMAGED}score-{step.name}"))
                    remarks.append(f"{step}: the score of this checkpoint is damaged")
        _wait_for_all()
        return remarks

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            name = self._free_name(f"{_DAMAGED}{step}")
            (self._directory / str(step)).rename(name)
        _wait_for_all()
        self._manager.reload()

    def _free_name(self, name: str) -> epath.Path:
        """Returns a path that is not in use: the same step may be damaged more than once."""
        path, number = self._directory / name, 2
        while path.exists():
            path, number = self._directory / f"{name}-{number}", number + 1
        return path

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        # TensorStore raises ValueError; so do collectives that lost a process.
        except (OSError, ValueError) as error:
            self._failed = True
            raise self._why_not_written(error) from error

    def _why_not_written(self, error: Exception) -> UserError | Transient:
        steps = [int(p.name) for p in self._directory.glob("*") if p.name.isdecimal()]
        kept = f"; the checkpoint of step {max(steps)} is kept" if steps else ""
        kind = Transient if may_pass(error) else UserError
        return kind(f"cannot write {self._directory}: {why_unwritable(error)}{kept}")


class _Outcome(enum.IntEnum):
    """The outcome of reading a checkpoint, from good to bad."""

    READ = 0
    DAMAGED = 1
    FAILED = 2


def _worst_outcome(error: Exception | None) -> _Outcome:
    """Returns the worst outcome of all processes, of which this one had `error`."""
    mine = _Outcome.FAILED if error else _Outcome.READ
    if isinstance(error, Damaged):
        mine = _Outcome.DAMAGED
    return _Outcome(int(np.max(multihost_utils.process_allgather(np.int32(mine)))))


def _wait_for_all() -> None:
    multihost_utils.process_allgather(np.int32(0))


# A missing file is damage. Other errors of the operating system say nothing about the data.
_MISSING = (errno.ENOENT, errno.ENOTDIR)


@contextlib.contextmanager
def _reading(path: epath.Path) -> Iterator[None]:
    """Turns a reader's error into `Damaged`, `Transient`, or another `UserError`."""
    try:
        yield
    except Exception as error:
        reason = first_line(error)[:200]
        if may_pass(error):
            raise Transient(f"cannot read {path}: {reason}") from error
        code = os_error_code(error)
        if code in _MISSING if code else isinstance(error, ValueError):
            raise Damaged(f"{path}: this checkpoint is damaged ({reason})") from error
        # The cause is memory, permissions, the disk, or the version of a library.
        raise UserError(
            f"cannot read {path}: {type(error).__name__}: {reason}; the checkpoint is left as it is"
        ) from error


def _flat(state: TrainState) -> dict[str, Any]:
    """Returns the arrays of a state by path, and random keys as integer arrays."""
    return {
        path: jax.random.key_data(leaf) if is_random_key(leaf) else leaf
        for path, leaf in arrays_by_path(state).items()
    }


def _description(flat: dict[str, Any]) -> dict[str, str]:
    """Returns dtype and shape of every array by path, as "float32[3, 3, 8]"."""
    return {path: f"{leaf.dtype}{[*leaf.shape]}" for path, leaf in flat.items()}


def _like(leaf: jax.Array, value: Any) -> jax.Array:
    """Returns a value of `_flat` in the form of the leaf of its path."""
    if is_random_key(leaf):
        return jax.random.wrap_key_data(value, impl=jax.random.key_impl(leaf))
    return value


def _differences(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """Describes the first values that differ between a checkpoint and the run; empty if none do."""
    changed = [
        f"{key} {found.get(key, 'missing')!r} (now {expected.get(key, 'missing')!r})"
        for key in dict.fromkeys((*expected, *found))
        if found.get(key) != expected.get(key)
    ]
    more = f", and {len(changed) - 2} more differ" if len(changed) > 2 else ""
    return ", ".join(changed[:2]) + more
