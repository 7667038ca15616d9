"""Losses on class scores that read no labels, by pixel or by channel.

All divergences use `softmax_kl`, the divergence between two softmaxes. Its forward pass reads each
input twice: once for the maxima, and once for four sums together. Its derivative is written by
hand, so that the backward pass reads the inputs once more and keeps only two numbers for each
softmax. Automatic differentiation would keep float32 copies of the exponentials.
"""

import functools
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kdjax.losses._arrays import by_group, check_option, check_positive, check_same_shape
from kdjax.losses._features import moments


class Normalizer(NamedTuple):
    """The logarithm of a softmax's denominator, `largest / temperature + log_sum`.

    The sum of the two would lose the digits of `log_sum` if all scores share a large offset.

    Attributes:
      largest: The largest score, or 0 if all scores are -inf.
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
      student: Scores.
      teacher: Scores of the same shape; they receive no gradient.
      temperature: A number or array; it receives no gradient.
      axis: One axis or several, over which each softmax is taken.
      where: Which softmaxes to compare, bool, of the shape of a normalizer. The scores of the
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


def pixelwise_kl(
    student: Float[Array, "*batch H W C"],
    teacher: Float[Array, "*batch H W C"],
    *,
    temperature: float | Array = 1.0,
) -> Float[Array, "*batch H W"]:
    """KL divergence from the teacher's class distribution to the student's, at every pixel.

    `t^2 sum_c p_c (log p_c - log q_c)` with the temperature `t`, and `p = softmax(teacher / t)` and
    `q = softmax(student / t)` over the channels. These are the soft targets of Hinton et al. (2015)
    at every pixel. A class whose score is -inf in both networks adds nothing. If only the student's
    score is -inf, the loss is infinite.

    Args:
      student: Logits `[..., H, W, C]`, any floating type.
      teacher: Logits of the same shape; they receive no gradient.
      temperature: Softens both distributions. A setting: it receives no gradient.

    Returns:
      float32 `[..., H, W]`; the plain mean is the loss.

    Raises:
      TypeError: If an input is not floating point.
      ValueError: If the shapes differ or the temperature is not positive.

    Other code reduces this loss differently. With batch size B, P pixels, C classes, and
    temperature t, a weight `w` here equals

    - `w` in CIRKD (`CriterionKD`), and `w t^2` in `kl_div(..., "batchmean")` over rows of pixels,
    - `w C t^2` in TorchDistiller and IFVD (they average over the classes too, without `t^2`),
    - `w / B` in SKD (`CriterionPixelWise`, which has no temperature and sums over the batch),
    - `w / P` in mmrazor's `KLDivergence` (which divides by the batch alone).
    """
    check_same_shape(student, teacher)
    check_positive("temperature", temperature)
    values, *_ = softmax_kl(student, teacher, temperature, axis=-1)
    return jax.lax.stop_gradient(temperature) ** 2 * values


def cwd(
    student: Float[Array, "*batch H W C"],
    teacher: Float[Array, "*batch H W C"],
    *,
    temperature: float | Array = 4.0,
) -> Float[Array, "*batch C"]:
    """Channel-wise distillation: KL divergence between each channel's distributions over pixels.

    `t^2 sum_i p_i (log p_i - log q_i)` for every channel. `p` and `q` are the softmax of the
    teacher's and the student's channel over its pixels `i`, at temperature `t`. The loss compares
    where a channel is high, and ignores its level: a constant that is added to a channel changes
    nothing. A pixel, or a whole channel, that is -inf in both networks adds nothing.

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
      formula as in the authors' TorchDistiller and in mmrazor's `ChannelWiseDivergence`. Weight 3
      on logits and 50 on features after the pyramid, temperature 4. Other code differs:
      mmsegmentation-distiller leaves out the teacher's entropy, which changes the value and not
      the gradient. It and CIRKD divide by the student's channels before the 1x1 convolution, so
      that their weight 50 with 128 and 512 channels is 200 here. TorchDistiller takes
      `softmax(...).log()`, which is not finite on peaked maps. Ignored pixels take part, here and
      in all of them.

    Examples:
      >>> loss = 3.0 * cwd(student_logits, teacher_logits).mean()
    """
    check_same_shape(student, teacher)
    check_positive("temperature", temperature)
    values, *_ = softmax_kl(student, teacher, temperature, axis=(-3, -2))
    return jax.lax.stop_gradient(temperature) ** 2 * values


def dist_inter(
    student: Float[Array, "*batch H W C"],
    teacher: Float[Array, "*batch H W C"],
    *,
    temperature: float | Array = 1.0,
    eps: float = 1e-8,
) -> Float[Array, "*batch H W"]:
    """DIST's relation between classes: 1 minus the correlation of both distributions of a pixel.

    `1 - rho(p, q)`, 0 to 2, with the correlation `rho` over the channels, and the teacher's and the
    student's softmax `p` and `q` over the channels.

    Args:
      student: Logits `[..., H, W, C]`, any floating type.
      teacher: Logits of the same shape; they receive no gradient.
      temperature: Softens both distributions. A setting: it receives no gradient.
      eps: Keeps a uniform distribution finite. Its correlation with anything is 0.

    Returns:
      float32 `[..., H, W]`; the plain mean is the loss.

    Raises:
      TypeError: If an input is not floating point.
      ValueError: If the shapes differ, or temperature or `eps` are not positive.

    Source:
      Huang et al., "Knowledge distillation from a stronger teacher" (NeurIPS 2022), the authors'
      code for segmentation: temperature 1, weight 1 on this and on `dist_intra`, and 0.4 of both
      on the auxiliary scores. Ignored pixels take part. The loss is not multiplied by the square of
      the temperature.
    """
    student, teacher = _distributions(student, teacher, temperature)
    return _decorrelation(student, teacher, (-1,), eps)[..., 0]


def dist_intra(
    student: Float[Array, "*batch H W C"],
    teacher: Float[Array, "*batch H W C"],
    *,
    temperature: float | Array = 1.0,
    classes: Literal["all", "present"] = "all",
    eps: float = 1e-8,
    group: int = 0,
    axis_name: str | tuple[str, ...] | None = None,
) -> Float[Array, "*groups C"]:
    """DIST's relation within classes: 1 minus the correlation of a class over the batch's pixels.

    `1 - rho(p_c, q_c)` over the pixels of all images, for every class.

    Args:
      student: Logits `[..., H, W, C]`, any floating type.
      teacher: Logits of the same shape; they receive no gradient.
      temperature: As in `dist_inter`.
      classes: `"all"`, as the authors' code, or `"present"` for classes that have the teacher's
        highest score at some pixel. Under `"all"`, a class that neither network predicts adds 1 and
        hardly any gradient.
      eps: Keeps such a class finite.
      group: The number of consecutive images that are taken together; 0 for all. The authors' code
        takes the 2 images of a device.
      axis_name: Inside `shard_map`, the mesh axes over which the images of the batch are split.

    Returns:
      float32 `[C]`, or `[..., B / group, C]`; the plain mean is the loss.

    Raises:
      TypeError: If an input is not floating point.
      ValueError: As `dist_inter`, and if `classes` is unknown or the group does not divide the
        batch.

    Source:
      As `dist_inter`. Half of `nfd` over `"batch_space"`, of the distributions.
    """
    check_option("classes", classes, ("all", "present"))
    student, teacher = _distributions(student, teacher, temperature)
    over = tuple(range(student.ndim - 1))
    if group:
        student, teacher = (by_group(x, group, axis_name) for x in (student, teacher))
        over = (-4, -3, -2)
    values = jnp.squeeze(_decorrelation(student, teacher, over, eps, axis_name), over)
    if classes == "all":
        return values
    seen = jnp.any(teacher == jnp.max(teacher, -1, keepdims=True), over)
    if axis_name is not None:
        seen = jax.lax.pmax(seen.astype(jnp.int32), axis_name) > 0
    return jnp.where(seen, values, 0.0) / jnp.mean(seen, -1, keepdims=True)


def _distributions(student, teacher, temperature):
    check_same_shape(student, teacher)
    check_positive("temperature", temperature)
    teacher, temperature = jax.lax.stop_gradient((teacher, temperature))
    return (jax.nn.softmax(x.astype(jnp.float32) / temperature) for x in (student, teacher))


def _decorrelation(student, teacher, axes, eps, axis_name=None):
    """Returns 1 minus the correlation over the axes, which stay."""
    check_positive("eps", eps)
    (student, variance_s), (teacher, variance_t) = (
        moments(x, axes, axis_name) for x in (student, teacher)
    )
    product = jnp.mean(student * teacher, axes, keepdims=True)
    count = math.prod(student.shape[axis] for axis in axes)
    if axis_name is not None:
        product, count = jax.lax.pmean(product, axis_name), count * jax.lax.axis_size(axis_name)
    # One root for both: the root of each alone has no derivative at 0.
    return 1.0 - product / jnp.sqrt(variance_s * variance_t + (eps / count) ** 2)
