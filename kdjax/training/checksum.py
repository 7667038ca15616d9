"""A checksum of arrays on the devices: the same however they are split, on any devices."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32


def checksum(tree: Any) -> int:
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
