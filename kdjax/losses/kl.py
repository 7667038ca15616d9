"""KL divergence between the class distributions of a pixel, plain and weighted by labels.

`gap_weighted_kl`, `dkd`, and `wsld` read labels.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from kdjax.losses._arrays import is_class
from kdjax.losses._checks import check_labels, check_option, check_positive, check_same_shape
from kdjax.losses._softmax import softmax_kl


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
      student: logits `[..., H, W, C]`, any floating type.
      teacher: logits of the same shape; they receive no gradient.
      temperature: softens both distributions. A setting: it receives no gradient.

    Returns:
      float32 `[..., H, W]`; the plain mean is the loss.

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

    `g t^2 KL(p || q)` with the gap `g`, which both networks' softmax at temperature 1 define. The
    gap receives no gradient:

    - `"probability"`: `max(0, p[y] - q[y])`, the lead of the teacher's probability of the true
      class `y`. It is 0 if the student is ahead, so that the teacher's mistakes are not taught.
    - `"cross_entropy"`: `max(0, log p[y] - log q[y])`, the same in nats, without an upper limit.
    - `"total_variation"`: `1/2 sum_c |p_c - q_c|`. It reads the labels only to find ignored pixels.

    Args:
      student: logits `[..., H, W, C]`, any floating type.
      teacher: logits of the same shape; they receive no gradient.
      labels: class indices `[..., H, W]`. A label that is neither a class nor `ignore_label` gives
        NaN with the first two gaps.
      temperature: softens the distributions inside the divergence.
      gap: how the gap is measured.
      ignore_label: the label of pixels that do not count.

    Returns:
      float32 `[..., H, W]`, 0 if the label is `ignore_label`, whatever the scores are. `valid_mean`
      over the other pixels is the loss; the plain mean is the same if no pixel is ignored.

    Source:
      The second half of Shan, "Distilling pixel-wise feature similarities for semantic
      segmentation" (2019). The abstract asks for soft targets weighted by the knowledge gap. The
      three formulas of the gap and the masking are our reading. No code was published.
    """
    check_same_shape(student, teacher)
    check_labels(labels, student, "logits")
    check_positive("temperature", temperature)
    check_option("gap", gap, ("probability", "cross_entropy", "total_variation"))
    labels = labels.astype(jnp.int32)
    valid = labels != ignore_label
    # Ignored before anything is computed: NaN at an ignored pixel would reach the gradient.
    kl = functools.partial(softmax_kl, student, teacher, axis=-1, where=valid[..., None])
    values, normalizer_s, normalizer_t = kl(temperature)
    # The gap is that of the softmax at temperature 1, whose normalizers may be known already.
    if isinstance(temperature, Tracer) or temperature != 1:
        _, normalizer_s, normalizer_t = kl(1.0)
    weight = _gap(student, teacher, normalizer_s, normalizer_t, labels, gap)
    weight = jax.lax.stop_gradient(jnp.where(valid, weight, 0.0))
    # Selected again, because 0 times an infinite divergence would be NaN.
    weighted = jnp.where(weight == 0, 0.0, weight * values)
    return jax.lax.stop_gradient(temperature) ** 2 * weighted


def _gap(student, teacher, normalizer_s, normalizer_t, labels, gap):
    """Returns how much more the teacher knows. NaN if the gap needs a class and there is none."""
    if gap == "total_variation":
        share_s = jnp.exp(normalizer_s.log_share(student))
        share_t = jnp.exp(normalizer_t.log_share(teacher))
        return 0.5 * jnp.sum(jnp.abs(share_t - share_s), axis=-1)
    # A negative label would count from the last class.
    labels = jnp.where(labels < 0, student.shape[-1], labels)[..., None]
    log_s, log_t = (
        normalizer.log_share(
            jnp.take_along_axis(logits, labels, -1, mode="fill", fill_value=jnp.nan)
        )
        for logits, normalizer in ((student, normalizer_s), (teacher, normalizer_t))
    )
    if gap == "cross_entropy":
        # A teacher whose score of the class is -inf is never ahead.
        return jnp.where(log_t == -jnp.inf, 0.0, jnp.maximum(log_t - log_s, 0.0))[..., 0]
    return jnp.maximum(jnp.exp(log_t) - jnp.exp(log_s), 0.0)[..., 0]


def dkd(
    student: Float[Array, "*batch H W C"],
    teacher: Float[Array, "*batch H W C"],
    labels: Int[Array, "*batch H W"],
    *,
    alpha: float | Array = 1.0,
    beta: float | Array = 0.5,
    temperature: float | Array = 1.0,
    ignore_label: int = 255,
) -> Float[Array, "*batch H W"]:
    """Decoupled KL divergence: separate weights for the labeled class and for the other classes.

    `t^2 (alpha KL(b^T || b^S) + beta KL(n^T || n^S))` at temperature `t`. `b` is the distribution
    over two outcomes, the labeled class and all others together. `n` is the distribution over the
    other classes alone. If `alpha` is 1 and `beta` is the teacher's share of the other classes, the
    loss is `pixelwise_kl`.

    Args:
      student: logits `[..., H, W, C]`, any floating type.
      teacher: logits of the same shape; they receive no gradient.
      labels: class indices `[..., H, W]`. Pixels whose label is no class add nothing.
      alpha: weight of the labeled class.
      beta: weight of the other classes; a number, or one for every pixel.
      temperature: softens both distributions. A setting: it receives no gradient.
      ignore_label: the label of pixels that do not count.

    Returns:
      float32 `[..., H, W]`, 0 if the label is `ignore_label`; `valid_mean` over the other pixels is
      the loss.

    Source:
      Zhao et al., "Decoupled knowledge distillation" (CVPR 2022), the authors' code for images,
      here at every pixel. They use alpha 1, beta 0.5, and temperature 1 on ImageNet, and beta 2 to
      8 and temperature 4 with a warm-up on CIFAR. To leave out the labeled class, they set its
      score to -1000; here it is -inf.
    """
    check_same_shape(student, teacher)
    check_labels(labels, student, "logits")
    check_positive("temperature", temperature)
    temperature = jax.lax.stop_gradient(temperature)
    chosen = is_class(labels, student.shape[-1], ignore_label)
    valid = jnp.any(chosen, -1, keepdims=True)
    student, teacher = (
        jnp.where(valid, x, 0).astype(jnp.float32) / temperature
        for x in (student, jax.lax.stop_gradient(teacher))
    )
    rest_s, rest_t = (jnp.where(chosen, -jnp.inf, x) for x in (student, teacher))
    among_others, normalizer_s, normalizer_t = softmax_kl(rest_s, rest_t, 1.0, -1)

    def pair(scores, rest, normalizer):
        # Relative to the largest other score, so that a large common offset costs no digits.
        of_class = jnp.sum(jnp.where(chosen, scores, 0), -1, keepdims=True) - normalizer.largest
        none = jnp.all(rest == -jnp.inf, -1, keepdims=True)
        of_others = jnp.where(none, -jnp.inf, normalizer.log_sum)
        return jnp.concatenate([of_class, of_others], -1)

    pair_s, pair_t = pair(student, rest_s, normalizer_s), pair(teacher, rest_t, normalizer_t)
    of_class, *_ = softmax_kl(pair_s, pair_t, 1.0, -1)
    return jnp.where(valid[..., 0], temperature**2 * (alpha * of_class + beta * among_others), 0.0)


def wsld(
    student: Float[Array, "*batch H W C"],
    teacher: Float[Array, "*batch H W C"],
    labels: Int[Array, "*batch H W"],
    *,
    temperature: float | Array = 2.0,
    ignore_label: int = 255,
) -> Float[Array, "*batch H W"]:
    """Weighted soft labels: pixelwise KL divergence, weighted down if the student is ahead.

    `g t^2 KL(p || q)` with `g = 1 - exp(-l^S / l^T)`. `l` is a network's cross-entropy at
    temperature 1, without gradient. `gap_weighted_kl` takes a difference where this loss takes a
    ratio.

    Args:
      student: logits `[..., H, W, C]`, any floating type.
      teacher: logits of the same shape; they receive no gradient.
      labels: class indices `[..., H, W]`. Pixels whose label is no class add nothing.
      temperature: softens the distributions inside the divergence. It receives no gradient.
      ignore_label: the label of pixels that do not count.

    Returns:
      float32 `[..., H, W]`, 0 if the label is `ignore_label`; `valid_mean` over the other pixels is
      the loss.

    Source:
      Zhou et al., "Rethinking soft labels for knowledge distillation: a bias-variance tradeoff
      perspective" (ICLR 2021), as in mmrazor's code for images, here at every pixel. Temperature
      2, weight 2.5. Their code takes the cross-entropy of the soft targets. Its value is larger by
      `g t^2` times the teacher's entropy; the gradient is the same.
    """
    check_same_shape(student, teacher)
    check_labels(labels, student, "logits")
    check_positive("temperature", temperature)
    chosen = is_class(labels, student.shape[-1], ignore_label)
    valid = jnp.any(chosen, -1, keepdims=True)
    values, *_ = softmax_kl(student, teacher, temperature, -1, valid)
    hard_s, hard_t = (
        -jnp.sum(jnp.where(chosen, jax.nn.log_softmax(x.astype(jnp.float32)), 0), -1)
        for x in jax.lax.stop_gradient((student, teacher))
    )
    # A teacher whose score of the class is -inf teaches nothing.
    weight = jnp.where(hard_t == jnp.inf, 0.0, 1.0 - jnp.exp(-hard_s / (hard_t + 1e-7)))
    weight = jnp.where(valid[..., 0], weight, 0.0)
    return jax.lax.stop_gradient(temperature) ** 2 * jnp.where(weight == 0, 0.0, weight * values)
