"""KL divergence between two softmaxes, in two passes over the scores and one over them back.

The gradient rule is written out: the pass back reads both inputs as they came and two numbers per
distribution; automatic differentiation would keep float32 copies of the exponentials. The forward
pass reads each input twice, once for the maxima and once for the four sums together.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def softmax_kl_forward(student, teacher, temperature, axis):
    """The divergence, and the inputs with their log-normalizers (which keep `axis`)."""
    largest_s = jnp.max(student, axis, keepdims=True).astype(jnp.float32)
    largest_t = jnp.max(teacher, axis, keepdims=True).astype(jnp.float32)
    s = (student.astype(jnp.float32) - largest_s) / temperature
    t = (teacher.astype(jnp.float32) - largest_t) / temperature
    exp_s, exp_t = jnp.exp(s), jnp.exp(t)
    sum_s, sum_t, more, ahead = (
        jnp.sum(terms, axis, keepdims=True)
        for terms in (exp_s, exp_t, exp_s - exp_t, exp_t * (t - s))
    )
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


def _softmax_kl_backward(axis, residuals, cotangent):
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
softmax_kl.defvjp(softmax_kl_forward, _softmax_kl_backward)
