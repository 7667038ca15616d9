"""Losses of single pixels that stress hard ones: focal loss, and online hard example mining."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.losses._checks import check_positive, check_shape

# Below any probability of a miss that matters; keeps the derivative of a power below 1 finite.
_SMALLEST_MISS = 1e-12


def focal(values: Float[Array, "*shape"], gamma: float = 2.0) -> Float[Array, "*shape"]:
    """The focal loss: multiplies cross-entropies by `(1 - p)^gamma`.

    `p = exp(-values)` is the probability of the label. With a larger `gamma`, pixels that are
    already predicted well count less.

    Args:
      values: cross-entropies of single pixels, any shape.
      gamma: the exponent, 0 or more. 0 changes nothing.

    Source:
      Lin et al., "Focal loss for dense object detection" (ICCV 2017), with the softmax in place of
      the sigmoid.
    """
    check_positive("gamma", gamma, or_zero=True)
    values = values.astype(jnp.float32)
    return values * jnp.maximum(-jnp.expm1(-values), _SMALLEST_MISS) ** gamma


def hard_pixels(
    values: Float[Array, "*shape"],
    valid: Bool[Array, "*shape"],
    *,
    share: float,
    below: float = 0.0,
) -> Bool[Array, "*shape"]:
    """Online hard example mining: returns True for the pixels with the largest losses.

    Args:
      values: cross-entropies of single pixels, any shape.
      valid: the pixels that count, of the same shape.
      share: the share of the valid pixels to keep, above 0 and at most 1. At least one is kept.
      below: pixels whose label has a lower probability than this are kept, too. 0 adds none.

    Returns:
      bool, of the same shape. A valid pixel whose value is NaN is kept.

    Source:
      `share` is `top_k_percent_pixels` of DeepLab's code. With `below=0.7`, the result is that of
      mmsegmentation's `OHEMPixelSampler(thresh=0.7)`, whose `min_kept` is a number of pixels.
    """
    check_shape("valid", valid, values.shape)
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share}")
    if not 0 <= below <= 1:
        raise ValueError(f"below must be from 0 to 1, got {below}")
    values = jax.lax.stop_gradient(values)
    ranked = jnp.sort(jnp.where(valid, values, -jnp.inf).ravel())
    kept = jnp.maximum(jnp.round(share * jnp.sum(valid)).astype(jnp.int32), 1)
    threshold = ranked[ranked.size - kept]
    if below:
        threshold = jnp.minimum(threshold, -math.log(below))
    # Not `values >= threshold`, which would drop NaN and hide a wrong label.
    return valid & ~(values < threshold)
