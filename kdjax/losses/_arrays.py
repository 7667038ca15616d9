"""The two array operations that several losses share."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Int

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
