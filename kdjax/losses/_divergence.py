"""KL divergence between two softmaxes, in two passes over the scores and one over them back.

The gradient rule is written out: the pass back reads both inputs as they came and two numbers per
distribution; automatic differentiation would keep float32 copies of the exponentials. The forward
pass reads each input twice, once for the maxima and once for the three sums together.
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
    sum_s = jnp.sum(jnp.exp(s), axis, keepdims=True)
    sum_t = jnp.sum(jnp.exp(t), axis, keepdims=True)
    difference = jnp.sum(jnp.exp(t) * (t - s), axis, keepdims=True)
    log_s, log_t = jnp.log(sum_s), jnp.log(sum_t)
    values = jnp.squeeze(difference / sum_t + (log_s - log_t), axis)
    return values, (
        student,
        teacher,
        temperature,
        largest_s / temperature + log_s,
        largest_t / temperature + log_t,
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
