"""KL divergence between the standardized class scores of a pixel."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.losses._checks import check_positive, check_same_shape
from kdjax.losses._softmax import softmax_kl

_EPSILON = 1e-7  # the authors' constant


def standardized_kl(
    student: Float[Array, "*batch H W C"],
    teacher: Float[Array, "*batch H W C"],
    *,
    temperature: float | Array = 2.0,
) -> Float[Array, "*batch H W"]:
    """Pixelwise KL divergence of scores with mean 0 and standard deviation 1 over the classes.

    `t^2 KL(p || q)` with `p = softmax(Z(teacher) / t)`, `q = softmax(Z(student) / t)`, and
    `Z(x) = (x - m) / (s + 1e-7)`. `m` is the mean of a pixel's scores, and `s` their standard
    deviation, with `C - 1` in its denominator. The student learns the proportions between the
    teacher's scores, and not their scale: the loss is 0 if `student = a teacher + b` with `a > 0`.

    A class whose score is -inf adds nothing, as in `pixelwise_kl`, and is left out of `m` and `s`.
    If all scores of a pixel are equal, they are not divided, so that the gradient stays finite.

    Args:
      student: logits `[..., H, W, C]`, any floating type.
      teacher: logits of the same shape; they receive no gradient.
      temperature: the authors' base temperature, which softens both distributions. A setting: it
        receives no gradient.

    Returns:
      float32 `[..., H, W]`; the plain mean is the loss.

    Source:
      Sun et al., "Logit standardization in knowledge distillation" (CVPR 2024), the authors' code
      for images, here at every pixel. They use temperature 2 and weight 9 on ImageNet.
    """
    check_same_shape(student, teacher)
    check_positive("temperature", temperature)
    values, *_ = softmax_kl(_standardize(student), _standardize(teacher), temperature, axis=-1)
    return jax.lax.stop_gradient(temperature) ** 2 * values


def _standardize(scores: Float[Array, "*shape C"]) -> Float[Array, "*shape C"]:
    """Returns the scores less their mean, divided by their standard deviation."""
    kept = scores != -jnp.inf
    # Relative to the largest score, so that a large common offset costs no digits.
    largest = jax.lax.stop_gradient(jnp.max(scores, -1, keepdims=True)).astype(jnp.float32)
    scores = jnp.where(kept, scores.astype(jnp.float32) - largest, 0.0)
    count = jnp.sum(kept, -1, keepdims=True)
    mean = jnp.sum(scores, -1, keepdims=True) / jnp.maximum(count, 1)
    centered = jnp.where(kept, scores - mean, 0.0)
    square = jnp.sum(jnp.square(centered), -1, keepdims=True)
    variance = square / jnp.maximum(count - 1, 1)
    # Selected, because the root has no derivative at 0.
    varies = variance > _EPSILON**2
    deviation = jnp.where(varies, jnp.sqrt(jnp.where(varies, variance, 1.0)) + _EPSILON, 1.0)
    return jnp.where(kept, centered / deviation, -jnp.inf)
