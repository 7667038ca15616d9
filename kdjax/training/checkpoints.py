"""The checkpoints of a run: its latest state and its best by mIoU, written while it goes on."""

import json
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from kdjax.errors import UserError
from kdjax.training.state import TrainState

BEST_METRIC = "miou"


class Checkpoints:
    """The `checkpoints/` of a workdir.

    Args:
      directory: created where it is missing.
      identity: what the checkpoints depend on but do not hold, as the teacher's source and
        fingerprint; a run does not continue from a checkpoint with another identity.
    """

    def __init__(self, directory: epath.PathLike, identity: dict[str, Any]):
        self._directory = epath.Path(directory)
        self._identity = identity
        best = policies.BestN(
            get_metric_fn=_best_metric, n=1, keep_checkpoints_without_metrics=False
        )
        self._manager = ocp.CheckpointManager(
            self._directory.resolve(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(1), best]),
                best_fn=_best_metric,
                best_mode="max",
            ),
        )

    @property
    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint."""
        return self._manager.latest_step()

    @property
    def best_step(self) -> int | None:
        """The step of the checkpoint with the highest mIoU."""
        return self._manager.best_step()

    def save(self, step: int, state: TrainState, miou: float) -> None:
        """Starts to write a checkpoint; it counts once it is complete.

        Raises:
          UserError: when the directory cannot be written to.
        """
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(_flat(state)),
                    identity=ocp.args.JsonSave(self._identity),
                ),
                metrics={BEST_METRIC: miou},
            )
        except OSError as error:
            raise UserError(f"cannot write {self._directory}: {error.strerror}") from error

    def restore(self, step: int, target: TrainState) -> TrainState:
        """Reads a checkpoint into the shapes and shardings of `target`.

        Raises:
          UserError: when the checkpoint is damaged, or belongs to another teacher.
        """
        path = self._directory / str(step)
        flat = _flat(target)
        try:
            identity = self._manager.restore(
                step, args=ocp.args.Composite(identity=ocp.args.JsonRestore())
            )["identity"]
            if identity != json.loads(json.dumps(self._identity)):
                raise UserError(
                    f"{path} was made with {_differences(identity, self._identity)}; continue "
                    "with what it was made with, or choose another --workdir"
                )
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(jax.tree.map(_abstract, flat))
                ),
            )["state"]
        except UserError:
            raise
        # Whatever a damaged file makes the reader say, the way out is the same.
        except Exception as error:
            raise UserError(
                f"{path}: this checkpoint is damaged ({_first_line(error)}); remove that folder "
                "to continue from the one before it"
            ) from error
        return jax.tree.unflatten(jax.tree.structure(target), [restored[key] for key in flat])

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()
        self._manager.close()


def _best_metric(metrics: dict[str, float]) -> float:
    return metrics[BEST_METRIC]


def _flat(state: TrainState) -> dict[str, Any]:
    """The arrays of a state by their path, which does not depend on flax's node types."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


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
