"""A checksum of arrays on the devices: the same however they are split, on any devices."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32


def checksum(tree: Any) -> int:
    """Returns 32 bits that change with any word of the arrays, or with two that change places.

    Integers wrap around and their sum has no order, so that nothing depends on the sharding.

    Args:
      tree: arrays of 32 bits each, as a training state holds.
    """
    return int(_checksum(jax.tree.leaves(tree)))


@jax.jit
def _checksum(leaves: list[Array]) -> UInt32[Array, ""]:
    total = jnp.zeros((), jnp.uint32)
    for leaf in leaves:
        words = jax.lax.bitcast_convert_type(leaf, jnp.uint32)
        # Odd factors: no change of a single word is multiplied to nothing.
        total = total * 31 + jnp.sum(words * (2 * _positions(leaf.shape) + 1), dtype=jnp.uint32)
    return total


def _positions(shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """The flat index of every element, made of one iota a dimension: nothing is reshaped."""
    positions, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        positions += stride * jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        stride *= shape[axis]
    return positions
