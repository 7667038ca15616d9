"""The state that a step carries on and a checkpoint holds."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Int, PyTree

from kdjax.models import Variables


@struct.dataclass
class TrainState:
    """Everything that changes during training. The teacher is not in it.

    Attributes:
      step: number of steps done.
      seed: of dropout. Here, and not in the program, so that runs of any seed are one program.
      params: {"student": parameters, "terms": what they learn, by name}, all trained together.
      model_state: all else that the student keeps: its variables' "state".
      opt_state: the optimizer's.
      terms: what the distillation terms carry, by name.
      ema: moving averages of `params["student"]` and `model_state`, as `update_average` makes them;
        or None.
    """

    step: Int[Array, ""]
    seed: Int[Array, ""]
    params: dict[str, PyTree]
    model_state: PyTree
    opt_state: optax.OptState
    terms: PyTree
    ema: tuple[PyTree, PyTree] | None

    def student(self) -> Variables:
        """The variables to evaluate and export: the moving average where there is one."""
        params, model_state = self.ema or (self.params["student"], self.model_state)
        return {"params": params, "state": model_state}


def update_average(average: Any, new: Any, decay: float) -> Any:
    """Moves averages towards new values; what is no real number, as a count or a key, is taken.

    Args:
      average: the arrays so far.
      new: the arrays of this step.
      decay: share of the average that is kept.
    """

    def move(old: Array, now: Array) -> Array:
        if not jnp.issubdtype(now.dtype, jnp.floating):
            return now
        return decay * old + (1 - decay) * now

    return jax.tree.map(move, average, new)


def create_state(
    student: Variables,
    terms: tuple[Any, Any],
    optimizer: optax.GradientTransformation,
    *,
    ema: bool,
    seed: int = 0,
) -> TrainState:
    """The state before the first step.

    Args:
      student: the network's variables.
      terms: what the distillation terms learn and carry, as `Distiller.init` returns it.
      optimizer: of the parameters of both.
      ema: whether to keep moving averages.
      seed: of the run.
    """
    learned, carried = terms
    params = {"student": student["params"], "terms": learned}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        seed=jnp.asarray(seed, jnp.int32),
        params=params,
        model_state=student["state"],
        opt_state=optimizer.init(params),
        terms=carried,
        ema=jax.tree.map(jnp.copy, (student["params"], student["state"])) if ema else None,
    )
