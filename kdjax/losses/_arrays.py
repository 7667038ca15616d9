"""The array operations that several losses share."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

# A float32 product in full. Accelerators round the operands to bfloat16 or TF32 unless told
# otherwise, and the losses below take small differences of such products.
einsum = functools.partial(
    jnp.einsum, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
)


def is_class(
    labels: Int[Array, "*shape"], classes: int, ignore_label: int
) -> Bool[Array, "*shape classes"]:
    """Marks the class of every label; nothing is marked where the label is ignored."""
    # int32 first: an ignore label of -1 would wrap around in uint8.
    labels = labels.astype(jnp.int32)[..., None]
    return (labels == jnp.arange(classes)) & (labels != ignore_label)


def rows(
    table: Float[Array, "rows columns"], index: Int[Array, "*shape"]
) -> Float[Array, "*shape columns"]:
    """The row of every index, on the device of the index; the nearest where there is none."""
    sharding = jax.typeof(index).sharding
    if AxisType.Explicit in sharding.mesh.axis_types:  # JAX does not say it by itself
        spread = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec, None))
    else:
        spread = None
    return table.at[index].get(mode="clip", out_sharding=spread)


def sum_over_first(function: Callable[..., Array], arrays: Any) -> Array:
    """Sums `function` over the entries of the arrays' first axis, of which one exists at a time.

    What an entry needs is computed once more in the backward pass.
    """
    function = jax.checkpoint(function, prevent_cse=False)
    one = jax.eval_shape(function, jax.tree.map(lambda array: array[0], arrays))
    # Zeros of that very type: on a mesh with Explicit axes, or in shard_map, it says how the sum
    # is spread over devices, and a loop must not change it.
    total, _ = jax.lax.scan(
        lambda total, entry: (total + function(entry), None), jnp.zeros_like(one), arrays
    )
    return total
