"""What a step costs, as its compiled program says."""

from typing import Any

from kdjax.training import flops


def step_cost(step_fn: Any, *arguments: Any) -> dict[str, float]:
    """Compiles a step for its arguments, which its first call then need not do again.

    Args:
      step_fn: a function under `jax.jit`.
      *arguments: what it is to be called with; they are only looked at.

    Returns:
      `train/step_flops`, multiplications and additions on all devices together, and
      `train/step_bytes`, what a device holds while it runs: arguments, results that take no
      argument's place, and temporaries. No bytes where the backend does not tell.
    """
    traced = step_fn.trace(*arguments)
    cost = {"train/step_flops": float(flops.count_program(traced.jaxpr))}
    memory = traced.lower().compile().memory_analysis()
    if memory is not None:
        cost["train/step_bytes"] = float(
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
            + memory.temp_size_in_bytes
        )
    return cost
