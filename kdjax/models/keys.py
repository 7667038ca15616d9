"""Random keys for networks, quick to draw where JAX traces."""

import jax
from flax import nnx


class _Stream(nnx.RngStream):
    """A stream that counts in Python how often a key was drawn from it."""

    def __init__(self, key: jax.Array, *, tag: str):
        super().__init__(key, tag=tag)
        self._drawn = 0

    def __call__(self) -> jax.Array:
        key = jax.random.fold_in(self.key[...], self._drawn)
        self._drawn += 1
        return key


def traced_rngs(*seeds: nnx.rnglib.RngValue, **streams: nnx.rnglib.RngValue) -> nnx.Rngs:
    """Returns `nnx.Rngs` of the same keys; one made within a trace is used up there.

    Flax counts in an array, and compares its sharding at each draw. An array that is traced has
    none: JAX then gathers, from all operations so far, the text of an error that Flax drops. An
    abstract HRNet-W48 took 15 s that way.
    """
    rngs = nnx.Rngs(*seeds, **streams)
    for name, stream in rngs.items():
        setattr(rngs, name, _Stream(stream.key[...], tag=stream.tag))
    return rngs
