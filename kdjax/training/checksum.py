"""A checksum of arrays that is computed on their devices."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, UInt32


def checksum(tree: PyTree) -> int:
    """Returns 32 bits that change if any value of the arrays changes, or if two values swap places.

    The sum of wrapping integers does not depend on their order, so the checksum does not depend on
    the sharding.

    Args:
      tree: arrays of numbers of any type, and random keys.
    """
    total = 0
    for value in jax.device_get([_checksum(leaf) for leaf in jax.tree.leaves(tree)]):
        total = (31 * total + int(value)) % 2**32
    return total


# One array at a time: arrays of the same shape share a program, which compiles faster than one
# program for all arrays.
@jax.jit
def _checksum(leaf: Array) -> UInt32[Array, ""]:
    words = _words(leaf)
    # An odd factor is invertible modulo 2^32: a change of a single word never cancels out.
    return jnp.sum(words * (2 * _positions(words.shape) + 1), dtype=jnp.uint32)


def _words(leaf: Array) -> UInt32[Array, "..."]:
    """Returns the bits of an array as one or two words per element."""
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
    """Returns the flat index of every element, without a reshape that would move sharded data."""
    positions, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        positions += stride * jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        stride *= shape[axis]
    return positions
