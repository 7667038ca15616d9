"""The checkpoints of a run: its latest states and its best by mIoU, written while it goes on."""

import contextlib
import json
import logging
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jaxtyping import Array, PyTree, UInt32
from orbax.checkpoint import checkpoint_managers as policies

from kdjax.errors import Transient, UserError
from kdjax.files import absolute, may_pass, why_unwritable
from kdjax.models.network import arrays_by_path, is_random_key
from kdjax.training.step import TrainState


def checksum(tree: PyTree) -> int:
    """Returns 32 bits that change with any value of the arrays, or with two that change places.

    Integers wrap around and their sum has no order, so that nothing depends on the sharding.

    Args:
      tree: arrays of numbers of any type, and random keys.
    """
    return int(_checksum(jax.tree.leaves(tree)))


@jax.jit
def _checksum(leaves: list[Array]) -> UInt32[Array, ""]:
    total = jnp.zeros((), jnp.uint32)
    for leaf in leaves:
        words = _words(leaf)
        # Odd factors: no change of a single word is multiplied to nothing.
        total = total * 31 + jnp.sum(words * (2 * _positions(words.shape) + 1), dtype=jnp.uint32)
    return total


def _words(leaf: Array) -> UInt32[Array, "..."]:
    """The bits of an array, one word or two for each element."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        leaf = jnp.stack([leaf.real, leaf.imag], axis=-1)
    if leaf.dtype.itemsize >= 4:
        return jax.lax.bitcast_convert_type(leaf, jnp.uint32)
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        leaf = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}"))
    return leaf.astype(jnp.uint32)


def _positions(shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """The flat index of every element, made of one iota a dimension: nothing is reshaped."""
    positions, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        positions += stride * jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        stride *= shape[axis]
    return positions


BEST_METRIC = "miou"
# The one before the latest is there for when the latest turns out to be damaged.
LATEST = 2
# Those between evaluations have no score, of which Orbax warns each time; in a notebook it shows.
logging.getLogger("absl").addFilter(
    lambda record: "did not provide metrics" not in record.getMessage()
)


class Damaged(UserError):
    """A checkpoint that cannot be read, or does not hold what was written."""


class Checkpoints:
    """The `checkpoints/` of a workdir.

    Args:
      directory: created where it is missing.
      identity: what the checkpoints depend on but do not hold, as the teacher's source and
        fingerprint; a run does not continue from a checkpoint with another identity.

    Raises:
      UserError: when the directory cannot be written to.
    """

    def __init__(self, directory: epath.PathLike, identity: dict[str, Any]):
        self._directory = epath.Path(directory)
        # As it comes back from JSON.
        self._identity = json.loads(json.dumps(identity))
        with self._writing():
            self._remarks = self._drop_damaged_scores()
        best = policies.BestN(
            get_metric_fn=_best_metric, n=1, keep_checkpoints_without_metrics=False
        )
        with self._writing():
            self._manager = ocp.CheckpointManager(
                absolute(self._directory),
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=policies.AnyPreservationPolicy(
                        [policies.LatestN(LATEST), best]
                    ),
                    best_fn=_best_metric,
                    best_mode="max",
                    # What a killed process had begun to write.
                    cleanup_tmp_directories=True,
                ),
            )

    @property
    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint."""
        return self._manager.latest_step()

    @property
    def best_step(self) -> int | None:
        """The step of the checkpoint with the highest mIoU, or None where none has one."""
        step = self._manager.best_step()
        return step if step is not None and self.is_scored(step) else None

    def is_scored(self, step: int) -> bool:
        """Whether a checkpoint has its mIoU."""
        return self._manager.metrics(step) is not None

    def save(self, step: int, state: TrainState, miou: float | None = None) -> None:
        """Starts to write a checkpoint; it counts once it is complete.

        One of the same step that has no mIoU is replaced by one that has.

        Raises:
          UserError: when it, or the one before it, cannot be written.
          Transient: when it may be at the next try.
        """
        with self._writing():
            if step in self._manager.all_steps():
                if miou is None or self.is_scored(step):
                    return
                self._manager.delete(step)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(_flat(state)),
                    identity=ocp.args.JsonSave(
                        {"identity": self._identity, "checksum": checksum(state)}
                    ),
                ),
                metrics=None if miou is None else {BEST_METRIC: miou},
                force=True,
            )

    def restore(self, step: int, target: TrainState) -> TrainState:
        """Reads a checkpoint into the shapes and shardings of `target`, whatever wrote it.

        Raises:
          Damaged: when it does not hold what was written.
          Transient: when its store does not answer now.
          UserError: when it belongs to another teacher or data set.
        """
        path, flat = self._directory / str(step), _flat(target)
        try:
            found = self._manager.restore(
                step, args=ocp.args.Composite(identity=ocp.args.JsonRestore())
            )["identity"]
            identity, expected = found["identity"], found["checksum"]
        # Whatever a damaged file makes the reader say, the way out is the same.
        except Exception as error:
            raise _unreadable(path, error) from error
        if identity != self._identity:
            raise UserError(
                f"{path} was made with {_differences(identity, self._identity)}; continue "
                "with what it was made with, or choose another --workdir"
            )
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(jax.tree.map(_abstract, flat))
                ),
            )["state"]
        except Exception as error:
            raise _unreadable(path, error) from error
        leaves = [
            _like(leaf, value)
            for leaf, value in zip(jax.tree.leaves(target), map(restored.get, flat), strict=True)
        ]
        state = jax.tree.unflatten(jax.tree.structure(target), leaves)
        if checksum(state) != expected:
            raise Damaged(f"{path}: this checkpoint is damaged (its checksum is another)")
        return state

    def restore_latest(self, target: TrainState) -> tuple[int, TrainState, list[str]]:
        """Reads the newest checkpoint that is whole; damaged ones are moved out of the way.

        Returns:
          Its step, its state, and a line about each thing that was damaged; step 0 and `target`
          where there is no checkpoint.

        Raises:
          UserError: when none of those that there are is whole, or as `restore`.
        """
        remarks: list[str] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            state, remark = target, ""
            try:
                state = self.restore(step, target)
            except Damaged as error:
                remark = str(error)
            if not _anywhere(bool(remark)):
                return step, state, self._remarks + remarks
            remarks.append(remark or f"{self._directory / str(step)}: damaged for another process")
            self._set_aside(step)
        if remarks:
            raise UserError(
                f"{'; '.join(remarks)}; no other is left. Remove {self._directory} to begin anew"
            )
        return 0, target, remarks

    def close(self) -> None:
        """Waits until everything is written.

        Raises:
          UserError: when it cannot be.
        """
        try:
            with self._writing():
                self._manager.wait_until_finished()
        finally:
            self._manager.close()

    def _drop_damaged_scores(self) -> list[str]:
        """Moves scores that cannot be read out of the way: their checkpoints are then unscored."""
        remarks = []
        if jax.process_index() == 0:
            for path in sorted(self._directory.glob("*/metrics/metrics")):
                step = path.parent.parent
                if not step.name.isdecimal():
                    continue
                try:
                    float(json.loads(path.read_text())[BEST_METRIC])
                except (ValueError, TypeError, KeyError):
                    path.parent.rename(self._directory / f"damaged-score-{step.name}")
                    remarks.append(f"{step}: the score of this checkpoint is damaged")
        _anywhere(bool(remarks))
        return remarks

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            (self._directory / str(step)).rename(self._directory / f"damaged-{step}")
        _anywhere(False)
        self._manager.reload()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        # The latter is TensorStore's, and that of processes that lost one of them.
        except (OSError, ValueError) as error:
            steps = [int(p.name) for p in self._directory.glob("*") if p.name.isdecimal()]
            kept = f"; the checkpoint of step {max(steps)} is kept" if steps else ""
            kind = Transient if may_pass(error) else UserError
            reason = why_unwritable(error)
            raise kind(f"cannot write {self._directory}: {reason}{kept}") from error


def _unreadable(path: epath.Path, error: Exception) -> Damaged | Transient:
    """What to raise for what a reader said."""
    if may_pass(error):
        return Transient(f"cannot read {path}: {_first_line(error)}")
    return Damaged(f"{path}: this checkpoint is damaged ({_first_line(error)})")


def _anywhere(flag: bool) -> bool:
    """Whether the flag is set in any process; also where all wait for each other."""
    return bool(multihost_utils.process_allgather(flag).any())


def _best_metric(metrics: dict[str, float]) -> float:
    return metrics[BEST_METRIC]


def _flat(state: TrainState) -> dict[str, Any]:
    """The arrays of a state by path; random keys as the numbers that they are made of."""
    return {
        path: jax.random.key_data(leaf) if is_random_key(leaf) else leaf
        for path, leaf in arrays_by_path(state).items()
    }


def _like(leaf: jax.Array, value: Any) -> jax.Array:
    """A value of `_flat` as what the leaf of its path is."""
    if is_random_key(leaf):
        return jax.random.wrap_key_data(value, impl=jax.random.key_impl(leaf))
    return value


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _differences(found: dict[str, Any], expected: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} {found.get(key)!r} (now {value!r})"
        for key, value in expected.items()
        if found.get(key) != value
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
