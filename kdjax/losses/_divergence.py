"""KL divergence between two softmaxes, in two passes over the scores and one over them back.

The rule of differentiation is written out: the pass back reads both inputs as they came and two
numbers per distribution; automatic differentiation would keep float32 copies of the exponentials.
The forward pass reads each input twice, once for the maxima and once for the four sums together,
and no float32 copy of a half-precision input is made.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def softmax_kl(student, teacher, temperature, axis, where=None):
    """KL divergence from `softmax(teacher / temperature)` to the student's, and the normalizers.

    The normalizers are the logarithms of both softmaxes' denominators, which keep `axis`. Teacher
    and temperature receive no gradient, in derivatives of any order.

    A score of -inf is a class (or pixel) that cannot be: it adds nothing where the teacher has it
    too, and nothing at all is compared where all scores of both are -inf. Where the student alone
    has it, the divergence is infinite.

    Distributions that `where` (bool, of the normalizers' shape) leaves out are those of scores that
    are all 0, whatever stands there.
    """
    teacher, temperature = jax.lax.stop_gradient((teacher, temperature))
    return _softmax_kl(student, teacher, temperature, where, axis)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _softmax_kl(student, teacher, temperature, where, axis):
    # The barrier keeps the CPU's compiler from writing down `input - largest` in float32.
    largest_s, largest_t = (
        _largest(largest.astype(jnp.float32), where)
        for largest in jax.lax.optimization_barrier(
            (jnp.max(student, axis, keepdims=True), jnp.max(teacher, axis, keepdims=True))
        )
    )
    # Selected after the maxima were taken, and in the pass back once more: the compiler would
    # write the selected scores down to take their maximum.
    student, teacher = _selected(student, where), _selected(teacher, where)
    s = (student.astype(jnp.float32) - largest_s) / temperature
    t = (teacher.astype(jnp.float32) - largest_t) / temperature
    exp_s, exp_t = jnp.exp(s), jnp.exp(t)
    # Selected, as 0 times the distance of a class that both have at -inf would be NaN.
    apart = jnp.where(exp_t == 0, 0.0, t - s)
    sum_s, sum_t, more, ahead = _sums((exp_s, exp_t, exp_s - exp_t, exp_t * apart), axis)
    # Sums of 0 are those of scores that are all -inf.
    some_s, some_t = (jnp.where(total == 0, 1.0, total) for total in (sum_s, sum_t))
    # The logarithm of sum_s / sum_t. Where the two are close, and with them student and teacher,
    # summing the differences keeps the digits that two large sums would share; it is exactly 0
    # for equal inputs, whatever order the compiler sums in.
    more /= some_t
    log_ratio = jnp.where(jnp.abs(more) < 0.5, jnp.log1p(more), jnp.log(some_s / sum_t))
    values = jnp.squeeze(ahead / some_t + log_ratio, axis)
    log_sum_t = jnp.log(some_t)
    normalizer_s = largest_s / temperature + (log_sum_t + log_ratio)
    return values, normalizer_s, largest_t / temperature + log_sum_t


@_softmax_kl.defjvp
def _softmax_kl_jvp(axis, primals, tangents):
    student, teacher, temperature, where = primals
    _, normalizer_s, normalizer_t = out = _softmax_kl(*primals, axis)

    # Linear in `change`; the checkpoint keeps the shares from being stored for the pass back.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def push(student, teacher, normalizer_s, normalizer_t, change):
        student, teacher = _selected(student, where), _selected(teacher, where)
        share_s = jnp.exp(student.astype(jnp.float32) / temperature - normalizer_s)
        share_t = jnp.exp(teacher.astype(jnp.float32) / temperature - normalizer_t)
        change = _selected(change, where).astype(jnp.float32)
        return (
            jnp.sum((share_s - share_t) * change, axis) / temperature,
            jnp.sum(share_s * change, axis, keepdims=True) / temperature,
        )

    moved = push(student, teacher, normalizer_s, normalizer_t, tangents[0])
    return out, (*moved, jnp.zeros_like(normalizer_t))


def _largest(largest, where):
    """What is subtracted from the scores: the largest, but 0 where all are -inf or left out."""
    return _selected(jnp.where(largest == -jnp.inf, 0.0, largest), where)


def _selected(array, where):
    return array if where is None else jnp.where(where, array, 0)


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
