"""Losses on class scores: pixel by pixel, channel by channel, or where the teacher knows more.

All rest on one KL divergence between two softmaxes, in two passes over the scores and one over them
back. Its rule of differentiation is written out: the pass back reads both inputs as they came and
two numbers per distribution; automatic differentiation would keep float32 copies of the
exponentials. The forward pass reads each input twice, once for the maxima and once for the four
sums together, and no float32 copy of a half-precision input is made.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from kdjax.losses._arrays import check_labels, check_option, check_positive, check_same_shape


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


def pixelwise_kl(
    student: Float[Array, "*batch H W C"],
    teacher: Float[Array, "*batch H W C"],
    *,
    temperature: float | Array = 1.0,
) -> Float[Array, "*batch H W"]:
    """KL divergence from the teacher's class distribution to the student's, at every pixel.

    `t^2 sum_c p_c (log p_c - log q_c)` with `p = softmax(teacher / t)`, `q = softmax(student / t)`
    over the channels and `t` the temperature: soft targets (Hinton et al., 2015) at every pixel.
    A class at -inf in both networks adds nothing; in the student alone, it makes the loss infinite.

    Args:
      student: Logits `[..., H, W, C]`, any floating type.
      teacher: Logits of the same shape; they receive no gradient.
      temperature: Softens both distributions. A setting: it receives no gradient.

    Returns:
      float32 `[..., H, W]`; the plain mean is the loss.

    Raises:
      TypeError: If an input is not floating point.
      ValueError: If the shapes differ or the temperature is not positive.

    The mean over pixels is one of several reductions in use under the same name. With batch size
    B, P pixels and C classes, a weight `w` on it equals

    - `w` in CIRKD (`CriterionKD`) and in `kl_div(..., "batchmean")` over rows of pixels,
    - `w C` in TorchDistiller and IFVD (they take the mean over channels as well),
    - `w / B` in SKD (`CriterionPixelWise`, which does not divide by the batch),
    - `w / P` in mmrazor's `KLDivergence` (which divides by the batch alone).
    """
    check_same_shape(student, teacher)
    check_positive("temperature", temperature)
    values, *_ = softmax_kl(student, teacher, temperature, axis=-1)
    return jax.lax.stop_gradient(temperature) ** 2 * values


def gap_weighted_kl(
    student: Float[Array, "*batch H W C"],
    teacher: Float[Array, "*batch H W C"],
    labels: Int[Array, "*batch H W"],
    *,
    temperature: float | Array = 1.0,
    gap: Literal["probability", "cross_entropy", "total_variation"] = "probability",
    ignore_label: int = 255,
) -> Float[Array, "*batch H W"]:
    """Pixelwise KL divergence, weighted by how much more the teacher knows at that pixel.

    `g t^2 KL(p || q)` with the gap `g`, computed from both networks' plain softmax (temperature 1)
    without a gradient:

    - `"probability"`: `max(0, p[y] - q[y])`, what the teacher gives the true class `y` beyond the
      student. It vanishes where the student is ahead, so mistakes of the teacher are not taught;
    - `"cross_entropy"`: `max(0, log p[y] - log q[y])`, the same in nats, with no upper limit;
    - `"total_variation"`: `1/2 sum_c |p_c - q_c|`, which needs no truth: the labels only say which
      pixels are ignored.

    Args:
      student: Logits `[..., H, W, C]`, any floating type.
      teacher: Logits of the same shape; they receive no gradient.
      labels: Class indices `[..., H, W]`. One that is neither a class nor `ignore_label` gives
        NaN with the first two gaps.
      temperature: Softens the distributions inside the divergence.
      gap: How the gap is measured.
      ignore_label: The label of pixels that do not count.

    Returns:
      float32 `[..., H, W]`, 0 where the label is `ignore_label`, whatever the scores are there.
      `valid_mean` over the other pixels is the loss; the plain mean is the same where nothing is
      ignored.

    Raises:
      TypeError: If a map is not floating point or the labels are not integers.
      ValueError: If shapes differ, the temperature is not positive or `gap` is unknown.

    Source:
      The second half of Shan, "Distilling pixel-wise feature similarities for semantic
      segmentation" (2019). Its abstract asks for soft targets weighted by the knowledge gap; the
      formula of the gap, the other two and the masking are our reading. No code was published.
    """
    check_same_shape(student, teacher)
    check_labels(labels, student, "logits")
    check_positive("temperature", temperature)
    check_option("gap", gap, ("probability", "cross_entropy", "total_variation"))
    labels = labels.astype(jnp.int32)
    valid = labels != ignore_label
    # Left out before anything is computed: what is not finite there would reach the gradient.
    kl = functools.partial(softmax_kl, student, teacher, axis=-1, where=valid[..., None])
    values, normalizer_s, normalizer_t = kl(temperature)
    # The gap is that of the plain softmax; at temperature 1, its normalizers are known already.
    if isinstance(temperature, Tracer) or temperature != 1:
        _, normalizer_s, normalizer_t = kl(1.0)
    weight = _gap(student, teacher, normalizer_s, normalizer_t, labels, gap)
    weight = jax.lax.stop_gradient(jnp.where(valid, weight, 0.0))
    # Selected again: a divergence of inf is not taught either where there is no gap.
    weighted = jnp.where(weight == 0, 0.0, weight * values)
    return jax.lax.stop_gradient(temperature) ** 2 * weighted


def cwd(
    student: Float[Array, "*batch H W C"],
    teacher: Float[Array, "*batch H W C"],
    *,
    temperature: float | Array = 4.0,
) -> Float[Array, "*batch C"]:
    """Channel-wise distillation: KL divergence between each channel's maps of attention.

    `t^2 sum_i p_i (log p_i - log q_i)` for every channel, with `p` and `q` the softmax of the
    teacher's and the student's channel over its pixels `i`, at temperature `t`. It asks where a
    channel looks, not how strongly: adding a constant to a channel changes nothing. A pixel, or a
    whole channel, at -inf in both networks adds nothing.

    Args:
      student: Logits or features `[..., H, W, C]`, any floating type.
      teacher: The same shape; it receives no gradient.
      temperature: Softens both distributions. A setting: it receives no gradient.

    Returns:
      float32 `[..., C]`; the plain mean is the loss.

    Raises:
      TypeError: If an input is not floating point.
      ValueError: If the shapes differ or the temperature is not positive.

    Source:
      Shu et al., "Channel-wise knowledge distillation for dense prediction" (ICCV 2021), the
      formula as in the authors' TorchDistiller. Logits: temperature 4, weight 3; features after
      the pyramid: weight 50. Equal to mmrazor's `ChannelWiseDivergence`. Differences elsewhere:
      mmsegmentation-distiller leaves out the teacher's entropy (another value, the same
      gradient); it and CIRKD divide by the student's channels before the 1x1 convolution, so
      that their weight 50 with 128 to 512 channels is 200 here; TorchDistiller takes
      `softmax(...).log()`, which is not finite on peaked maps. Ignored pixels take part, as in
      all of them.

    Example:
      >>> loss = 3.0 * cwd(student_logits, teacher_logits).mean()
    """
    check_same_shape(student, teacher)
    check_positive("temperature", temperature)
    values, *_ = softmax_kl(student, teacher, temperature, axis=(-3, -2))
    return jax.lax.stop_gradient(temperature) ** 2 * values


def _gap(student, teacher, log_normalizer_s, log_normalizer_t, labels, gap):
    """How much more the teacher knows; NaN where the label is no class and the truth is needed."""
    if gap == "total_variation":
        share_s = jnp.exp(student.astype(jnp.float32) - log_normalizer_s)
        share_t = jnp.exp(teacher.astype(jnp.float32) - log_normalizer_t)
        return 0.5 * jnp.sum(jnp.abs(share_t - share_s), axis=-1)
    # A negative label would count from the last class.
    labels = jnp.where(labels < 0, student.shape[-1], labels)[..., None]
    log_s, log_t = (
        jnp.take_along_axis(logits, labels, -1, mode="fill", fill_value=jnp.nan) - log_normalizer
        for logits, log_normalizer in ((student, log_normalizer_s), (teacher, log_normalizer_t))
    )
    if gap == "cross_entropy":
        # A teacher that rules out the class (-inf) is not ahead, whatever the student says.
        return jnp.where(log_t == -jnp.inf, 0.0, jnp.maximum(log_t - log_s, 0.0))[..., 0]
    return jnp.maximum(jnp.exp(log_t) - jnp.exp(log_s), 0.0)[..., 0]
