"""Maps of a teacher in the compact form of the cache."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# The shape per cell and the dtype of each array, by name.
Layout = dict[str, tuple[tuple[int, ...], np.dtype]]

_HALF = np.dtype(jnp.bfloat16)
_LARGEST = 127  # of a signed byte


@dataclasses.dataclass(frozen=True)
class Compression:
    """How the cache stores a map.

    Class scores are stored in bfloat16: all of them, or the highest of each cell and one value for
    the others. Features are stored in bfloat16, or in 8 bits with a scale for each cell.

    Attributes:
      channels: C.
      scores: True for class scores.
      keep: the number of highest scores that are kept; 0 for all.
      features: the type of features, "bfloat16" or "int8".
    """

    channels: int
    scores: bool
    keep: int = 0
    features: str = "bfloat16"

    def layout(self) -> Layout:
        """Returns the shape per cell and the dtype of the arrays of `compress`, by name."""
        if self.scores and self.keep:
            number = np.dtype(np.uint8 if self.channels <= 256 else np.uint16)
            return {
                "highest": ((self.keep,), _HALF),
                "classes": ((self.keep,), number),
                "rest": ((), _HALF),
            }
        if not self.scores and self.features == "int8":
            return {"levels": ((self.channels,), np.dtype(np.int8)), "scale": ((), _HALF)}
        return {"values": ((self.channels,), _HALF)}

    def compress(self, values: Float[Array, "... C"]) -> dict[str, Array]:
        """Returns a map as the arrays of `layout`.

        "rest" is the log-mean-exp of the other scores. As the score of each other class, it
        preserves the probabilities of the kept classes, and the total probability of the others.
        """
        values = values.astype(jnp.float32)
        layout = self.layout()
        if "highest" in layout:
            highest, classes = jax.lax.top_k(values, self.keep)
            others = jnp.put_along_axis(values, classes, -jnp.inf, axis=-1, inplace=False)
            rest = jax.nn.logsumexp(others, axis=-1) - jnp.log(self.channels - self.keep)
            found = {"highest": highest, "classes": classes, "rest": rest}
        elif "levels" in layout:
            # The scale is rounded first, so that the levels fit the scale that is stored.
            scale = (jnp.abs(values).max(-1) / _LARGEST).astype(_HALF)
            levels = jnp.round(values / jnp.maximum(scale.astype(jnp.float32), 1e-30)[..., None])
            found = {"levels": jnp.clip(levels, -_LARGEST, _LARGEST), "scale": scale}
        else:
            found = {"values": values}
        return {name: value.astype(layout[name][1]) for name, value in found.items()}

    def expand(self, arrays: Mapping[str, Array]) -> Float[Array, "... C"]:
        """Returns the map in bfloat16 from the arrays of `compress`."""
        if "values" in arrays:
            return arrays["values"]
        if "levels" in arrays:
            return arrays["levels"].astype(_HALF) * arrays["scale"][..., None]
        rest = arrays["rest"]
        values = jnp.broadcast_to(rest[..., None], (*rest.shape, self.channels))
        return jnp.put_along_axis(
            values, arrays["classes"].astype(jnp.int32), arrays["highest"], -1, inplace=False
        )

    def num_bytes(self, sizes: np.ndarray) -> int:
        """Returns the size on disk of maps of these heights and widths, `[N, 2]`."""
        per_cell = sum(
            int(np.prod(shape)) * kind.itemsize for shape, kind in self.layout().values()
        )
        return int(sizes.prod(1, dtype=np.int64).sum()) * per_cell
