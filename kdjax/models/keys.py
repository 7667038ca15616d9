"""Random keys for networks, quick to draw where JAX traces."""

from typing import Any

import jax
import numpy as np
from flax import nnx


class _Stream(nnx.RngStream):
    """A stream that does not compare the sharding of its count at each draw.

    Where it is made, the count is a number of NumPy, also within a trace; where a network that
    keeps it runs in a step, it is an array of the step's state like any other.
    """

    def __init__(self, key: jax.Array, *, tag: str):
        super().__init__(key, tag=tag)
        zero: Any = np.zeros(self.key.shape, np.uint32)
        self.count.set_raw_value(zero)

    def __call__(self) -> jax.Array:
        count = self.count.get_raw_value()
        self.count.set_raw_value(count + np.uint32(1))
        return jax.random.fold_in(self.key.get_raw_value(), count)


def traced_rngs(*seeds: nnx.rnglib.RngValue, **streams: nnx.rnglib.RngValue) -> nnx.Rngs:
    """Returns `nnx.Rngs` of the same keys.

    Flax compares the sharding of a stream's count at each draw. An array that is traced has none:
    JAX then gathers, from all operations so far, the text of an error that Flax drops. An abstract
    HRNet-W48 took 15 s that way.
    """
    rngs = nnx.Rngs(*seeds, **streams)
    for name, stream in rngs.items():
        setattr(rngs, name, _Stream(stream.key[...], tag=stream.tag))
    return rngs
