"""Imitation of the teacher's scores: pixel by pixel, channel by channel, or where it knows more."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from kdjax.losses._checks import check_labels, check_option, check_positive, check_same_shape
from kdjax.losses._divergence import softmax_kl


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
