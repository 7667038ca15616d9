"""Class scores in few bytes: all in bfloat16, or the highest with one value for the rest."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def layout(num_classes: int, keep: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """The arrays that `compact` makes, by name: what each holds of a cell, and its type.

    Args:
      num_classes: K.
      keep: how many of the highest scores are kept; 0 for all.
    """
    half = np.dtype(jnp.bfloat16)
    if keep == 0:
        return {"scores": ((num_classes,), half)}
    number = np.dtype(np.uint8 if num_classes <= 256 else np.uint16)
    return {"highest": ((keep,), half), "classes": ((keep,), number), "rest": ((), half)}


def compact(logits: Float[Array, "... K"], keep: int) -> dict[str, Array]:
    """Makes the arrays of `layout` from class scores.

    The rest is its log-mean-exp: given to every class that is not kept, it leaves the kept ones
    their probabilities, and the others together theirs.
    """
    num_classes = logits.shape[-1]
    logits = logits.astype(jnp.float32)
    types = {name: kind for name, (_, kind) in layout(num_classes, keep).items()}
    if keep == 0:
        return {"scores": logits.astype(types["scores"])}
    highest, classes = jax.lax.top_k(logits, keep)
    others = jnp.put_along_axis(logits, classes, -jnp.inf, axis=-1, inplace=False)
    rest = jax.nn.logsumexp(others, axis=-1) - jnp.log(num_classes - keep)
    found = {"highest": highest, "classes": classes, "rest": rest}
    return {name: value.astype(types[name]) for name, value in found.items()}


def expand(compacted: Mapping[str, Array], num_classes: int) -> Float[Array, "... K"]:
    """Class scores again, in bfloat16, from what `compact` made."""
    if "scores" in compacted:
        return compacted["scores"]
    rest = compacted["rest"]
    scores = jnp.broadcast_to(rest[..., None], (*rest.shape, num_classes))
    return jnp.put_along_axis(
        scores, compacted["classes"].astype(jnp.int32), compacted["highest"], -1, inplace=False
    )
