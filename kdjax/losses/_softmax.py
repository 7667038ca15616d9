"""The KL divergence between two softmaxes, and its derivative by hand.

The forward pass reads each input twice: once for the maxima, and once for four sums together. The
backward pass reads the inputs once more and keeps only two numbers for each softmax. Automatic
differentiation would keep float32 copies of the exponentials.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Normalizer(NamedTuple):
    """The logarithm of a softmax's denominator, `largest / temperature + log_sum`.

    The sum of the two would lose the digits of `log_sum` if all scores share a large offset.

    Attributes:
      largest: the largest score, or 0 if all scores are -inf.
      log_sum: `log sum exp((scores - largest) / temperature)`.
    """

    largest: Float[Array, "..."]
    log_sum: Float[Array, "..."]

    def log_share(self, scores, temperature=1.0):
        """Returns the log-softmax of the scores."""
        return (scores.astype(jnp.float32) - self.largest) / temperature - self.log_sum


def softmax_kl(student, teacher, temperature, axis, where=None):
    """KL divergence from `softmax(teacher / temperature)` to the student's softmax.

    A class (or pixel) whose score is -inf in both networks adds nothing. If all scores of both are
    -inf, the divergence is 0. If only the student's score is -inf, the divergence is infinite.

    Args:
      student: scores.
      teacher: scores of the same shape; they receive no gradient.
      temperature: a number or array; it receives no gradient.
      axis: one axis or several, over which each softmax is taken.
      where: which softmaxes to compare, bool, of the shape of a normalizer. The scores of the
        others count as 0, whatever they are.

    Returns:
      The divergences without `axis`, and the student's and teacher's `Normalizer` with it.
    """
    teacher, temperature = jax.lax.stop_gradient((teacher, temperature))
    return _softmax_kl(student, teacher, temperature, where, axis)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _softmax_kl(student, teacher, temperature, where, axis):
    # The barrier keeps the CPU compiler from storing `input - largest` in float32.
    largest_s, largest_t = (
        _selected(jnp.where(largest == -jnp.inf, 0.0, largest).astype(jnp.float32), where)
        for largest in jax.lax.optimization_barrier(
            (jnp.max(student, axis, keepdims=True), jnp.max(teacher, axis, keepdims=True))
        )
    )
    # Selected after the maxima, and again in the backward pass: the compiler would store selected
    # scores to take their maximum.
    student, teacher = _selected(student, where), _selected(teacher, where)
    s = (student.astype(jnp.float32) - largest_s) / temperature
    t = (teacher.astype(jnp.float32) - largest_t) / temperature
    exp_s, exp_t = jnp.exp(s), jnp.exp(t)
    # Selected, because 0 times the distance of a class that is -inf in both would be NaN.
    apart = jnp.where(exp_t == 0, 0.0, t - s)
    sum_s, sum_t, more, ahead = _sums((exp_s, exp_t, exp_s - exp_t, exp_t * apart), axis)
    # A sum is 0 only if all scores are -inf.
    some_s, some_t = (jnp.where(total == 0, 1.0, total) for total in (sum_s, sum_t))
    # The logarithm of sum_s / sum_t. If the two are close, a sum of differences keeps the digits
    # that the two large sums share. It is exactly 0 for equal inputs, in any order of summation.
    more /= some_t
    log_ratio = jnp.where(jnp.abs(more) < 0.5, jnp.log1p(more), jnp.log(some_s / sum_t))
    values = jnp.squeeze(ahead / some_t + log_ratio, axis)
    log_sum_t = jnp.log(some_t)
    return values, Normalizer(largest_s, log_sum_t + log_ratio), Normalizer(largest_t, log_sum_t)


@_softmax_kl.defjvp
def _softmax_kl_jvp(axis, primals, tangents):
    student, teacher, temperature, where = primals
    _, normalizer_s, normalizer_t = out = _softmax_kl(*primals, axis)

    # Linear in `change`. The checkpoint avoids storing the shares for the backward pass.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def push(student, teacher, normalizer_s, normalizer_t, change):
        student, teacher = _selected(student, where), _selected(teacher, where)
        share_s = jnp.exp(normalizer_s.log_share(student, temperature))
        share_t = jnp.exp(normalizer_t.log_share(teacher, temperature))
        change = _selected(change, where).astype(jnp.float32)
        return (
            jnp.sum((share_s - share_t) * change, axis) / temperature,
            jnp.sum(share_s * change, axis, keepdims=True) / temperature,
        )

    # The largest score counts as a constant: a shift of it does not change the softmax.
    still = jnp.zeros_like(normalizer_s.largest)
    moved, moved_sum = push(student, teacher, normalizer_s, normalizer_t, tangents[0])
    return out, (moved, Normalizer(still, moved_sum), Normalizer(still, still))


def _selected(array, where):
    return array if where is None else jnp.where(where, array, 0)


# The longest row that is summed entry by entry: float32 would lose digits in longer ones.
_LONGEST = 1024


def _sums(terms, axis):
    """Sums several arrays over `axis`, which stays, by one reduction over its last dimension.

    On every backend, one reduction computes the arrays while it reads the inputs. For several
    reductions, the CPU compiler stores the arrays first.
    """
    *others, last = (index % terms[0].ndim for index in np.atleast_1d(axis))
    if terms[0].shape[last] > _LONGEST:
        return [jnp.sum(term, (*others, last), keepdims=True) for term in terms]

    def add(left, right):
        return tuple(x + y for x, y in zip(left, right, strict=True))

    sums = jax.lax.reduce(terms, (jnp.float32(0.0),) * len(terms), add, (last,))
    return [jnp.sum(jnp.expand_dims(total, last), others, keepdims=True) for total in sums]
