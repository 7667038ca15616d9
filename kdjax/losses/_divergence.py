"""KL divergence between two softmaxes, in two passes over the scores and one over them back.

The gradient rule is written out: the pass back reads both inputs as they came and two numbers per
distribution; automatic differentiation would keep float32 copies of the exponentials. The forward
pass reads each input twice, once for the maxima and once for the four sums together, and no float32
copy of a half-precision input is made.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def softmax_kl_forward(student, teacher, temperature, axis):
    """The divergence, and the inputs with their log-normalizers (which keep `axis`)."""
    # The barrier keeps the CPU's compiler from writing down `input - largest` in float32.
    largest_s, largest_t = (
        largest.astype(jnp.float32)
        for largest in jax.lax.optimization_barrier(
            (jnp.max(student, axis, keepdims=True), jnp.max(teacher, axis, keepdims=True))
        )
    )
    s = (student.astype(jnp.float32) - largest_s) / temperature
    t = (teacher.astype(jnp.float32) - largest_t) / temperature
    exp_s, exp_t = jnp.exp(s), jnp.exp(t)
    sum_s, sum_t, more, ahead = _sums((exp_s, exp_t, exp_s - exp_t, exp_t * (t - s)), axis)
    # The logarithm of sum_s / sum_t. Where the two are close, and with them student and teacher,
    # summing the differences keeps the digits that two large sums would share; it is exactly 0
    # for equal inputs, whatever order the compiler sums in.
    more /= sum_t
    log_ratio = jnp.where(jnp.abs(more) < 0.5, jnp.log1p(more), jnp.log(sum_s / sum_t))
    values = jnp.squeeze(ahead / sum_t + log_ratio, axis)
    log_sum_t = jnp.log(sum_t)
    return values, (
        student,
        teacher,
        temperature,
        largest_s / temperature + (log_sum_t + log_ratio),
        largest_t / temperature + log_sum_t,
    )


# Summed one after the other: longer than this, float32 would lose digits.
_LONGEST = 1024


def _sums(terms, axis):
    """Sums of several arrays, kept in their `axis`, by one reduction over its last dimension.

    One reduction computes the arrays as it goes over the inputs, on every back end; of several, the
    CPU's compiler writes the arrays down first.
    """
    *others, last = (index % terms[0].ndim for index in np.atleast_1d(axis))
    if terms[0].shape[last] > _LONGEST:
        return [jnp.sum(term, (*others, last), keepdims=True) for term in terms]

    def add(left, right):
        return tuple(x + y for x, y in zip(left, right, strict=True))

    sums = jax.lax.reduce(terms, (jnp.float32(0.0),) * len(terms), add, (last,))
    return [jnp.sum(jnp.expand_dims(total, last), others, keepdims=True) for total in sums]


def softmax_kl_backward(axis, residuals, cotangent):
    """The gradient by the student; none by the teacher and the temperature."""
    student, teacher, temperature, log_normalizer_s, log_normalizer_t = residuals
    share_s = jnp.exp(student.astype(jnp.float32) / temperature - log_normalizer_s)
    share_t = jnp.exp(teacher.astype(jnp.float32) / temperature - log_normalizer_t)
    gradient = jnp.expand_dims(cotangent / temperature, axis) * (share_s - share_t)
    return gradient.astype(student.dtype), None, None


def _softmax_kl(student, teacher, temperature, axis) -> jax.Array:
    """KL divergence from `softmax(teacher / temperature)` to the student's along `axis`.

    The teacher and the temperature receive no gradient.
    """
    return softmax_kl_forward(student, teacher, temperature, axis)[0]


softmax_kl = jax.custom_vjp(_softmax_kl, nondiff_argnames=("axis",))
softmax_kl.defvjp(softmax_kl_forward, softmax_kl_backward)
