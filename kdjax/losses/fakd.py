"""FAKD: distillation under infinitely many augmentations of the student's features.

The upper bounds of the expected losses follow as in `isda`.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kdjax.losses._arrays import einsum, rows, sum_over_first
from kdjax.losses._checks import check_map, check_option, check_positive, check_shape
from kdjax.losses._softmax import softmax_kl
from kdjax.losses.isda import check_head, class_scores, weight_spread


def fakd_kl(  # noqa: PLR0913
    student_features: Float[Array, "*batch H W A"],
    kernel: Float[Array, "A C"],
    bias: Float[Array, " C"] | None,
    teacher_logits: Float[Array, "*batch H W C"],
    labels: Int[Array, "*batch H W"],
    covariance: Float[Array, "C A"] | Float[Array, "C A A"],
    *,
    strength: float | Array,
    temperature: float | Array = 1.0,
    bound: Literal["soft", "pairwise", "label", "student", "none"] = "soft",
    ignore_label: int = 255,
) -> Float[Array, "*batch H W"]:
    """Feature-augmented distillation: a bound on the pixelwise KL under augmented features.

    With features `x`, scores `s = x kernel + bias`, teacher `p = softmax(teacher_logits / t)` and
    `x~ = x + z`, `z ~ N(0, strength Sigma_y)` for a pixel of class `y`, for any vector `v`

        E[t^2 KL(p || softmax(s~ / t))] <= F(v)
        F(v) = t^2 (KL(p || softmax(s / t)) + log sum_j exp(s_j / t + d_j) - log sum_j exp(s_j / t))
        d_j = strength / (2 t^2) (w_j - v)' Sigma_y (w_j - v)

    where `w_j` is the kernel's column of class `j`. The options choose `v`:

    - `"soft"`: `sum_c p_c w_c`, the teacher's mean column.
    - `"pairwise"`: `sum_c p_c F(w_c)` in place of one `v`, which is ISDA's argument for each class.
      It is never below `"soft"`, and the only option that costs P C^2 with a diagonal covariance.
    - `"label"`: `w_y`, as in the augmented scores of ISDA.
    - `"student"`: `sum_c q_c w_c` with the student's `q = softmax(s / t)` as a constant, which is
      one step towards the tightest bound.
    - `"none"`: 0.

    All options equal the plain loss at strength 0, are never below it, and grow with the strength.

    Args:
      student_features: input `[..., H, W, A]` of the student's last 1x1 convolution.
      kernel: its kernel `[A, C]`.
      bias: its bias `[C]`, or None.
      teacher_logits: `[..., H, W, C]`; they receive no gradient.
      labels: class indices `[..., H, W]`, nearest-resized to the features' size.
      covariance: of the student's features in each class, `[C, A]` (diagonal) or `[C, A, A]`, as
        in `ClassStatistics.covariance`; it receives no gradient. A full one costs P C^3.
      strength: scale of the augmentation, which usually grows linearly from 0 over the training.
      temperature: softens both distributions. It receives no gradient.
      bound: the choice of `v`.
      ignore_label: the label of pixels that do not count.

    Returns:
      float32 `[..., H, W]`, 0 if the label is `ignore_label`. `valid_mean` over the other pixels is
      the loss; the plain mean is the same if no pixel is ignored.

    Source:
      Yuan et al., "FAKD: Feature augmented knowledge distillation for semantic segmentation"
      (2022). The abstract asks for an upper bound of the expected loss over infinitely many
      augmentations. `"pairwise"` is most likely the paper's bound, and the others are ours;
      docs/methods/fakd.md derives all. No code was published. The divergence of the augmented
      scores `s / t + d` is not a bound: it is `F` minus `sum_c p_c d_c`, and can be below the plain
      loss.
    """
    head = student_features, kernel, bias, labels, covariance, strength, ignore_label
    member = _check_distillation(head, teacher_logits, temperature)
    check_option("bound", bound, ("soft", "pairwise", "label", "student", "none"))
    # Replaced before anything is computed: NaN at an ignored pixel would reach the gradient.
    valid = labels.astype(jnp.int32) != ignore_label
    student_features, teacher = (
        jnp.where(valid[..., None], array, 0)
        for array in (student_features, jax.lax.stop_gradient(teacher_logits))
    )
    scores, teacher = class_scores(student_features, kernel, bias), teacher.astype(jnp.float32)
    covariance = jax.lax.stop_gradient(covariance).astype(jnp.float32)
    kernel = kernel.astype(jnp.float32)
    if bound != "none":
        # Only differences of columns count. Centered columns have the smallest squares.
        kernel -= jnp.mean(kernel, axis=-1, keepdims=True)
    temperature = jax.lax.stop_gradient(temperature)
    scores, target = scores / temperature, jax.nn.softmax(teacher / temperature)
    scale = strength / (2 * temperature**2)

    if bound == "pairwise":
        classes = jnp.eye(kernel.shape[-1], dtype=jnp.float32)
        table = scale * weight_spread(kernel, covariance, classes[:, None], classes[None])

        augmented = jnp.any(member > 0, axis=-1, keepdims=True)

        def class_growth(of_class):
            share, spread = of_class
            return share * log_sum_growth(
                scores, jnp.where(augmented, rows(spread, labels), 0.0), axis=-1
            )

        growth = sum_over_first(
            class_growth, (jnp.moveaxis(target, -1, 0), jnp.moveaxis(table, 1, 0))
        )
    else:
        anchor = {
            "soft": target,
            "label": member,
            "student": jax.lax.stop_gradient(jax.nn.softmax(scores)),
            "none": jnp.zeros_like(target),
        }[bound]
        spread = weight_spread(kernel, covariance, member, anchor)
        growth = log_sum_growth(scores, scale * spread, axis=-1)

    divergence, *_ = softmax_kl(scores, teacher / temperature, 1.0, axis=-1)
    values = temperature**2 * (divergence + growth)
    return jnp.where(valid, values, 0.0)


def fakd_cwd(  # noqa: PLR0913
    student_features: Float[Array, "*batch H W A"],
    kernel: Float[Array, "A C"],
    bias: Float[Array, " C"] | None,
    teacher_logits: Float[Array, "*batch H W C"],
    labels: Int[Array, "*batch H W"],
    covariance: Float[Array, "C A"] | Float[Array, "C A A"],
    *,
    strength: float | Array,
    temperature: float | Array = 4.0,
    ignore_label: int = 255,
) -> Float[Array, "*batch C"]:
    """Feature-augmented distillation: a bound on channel-wise distillation.

    `cwd` of the scores, plus `t^2 (log sum_i exp(s_ci / t + d_ci) - log sum_i exp(s_ci / t))` over
    the pixels `i`, with `d_ci = strength / (2 t^2) w_c' Sigma_y w_c` for a pixel of class `y`. This
    is an upper bound of the expected `cwd` under augmented features, for any dependence between the
    noise of the pixels. Pixels of a class with a large variance weigh more in the student's
    normalizer.

    The arguments are those of `fakd_kl`, with the temperature of `cwd`. The bias does not change
    the loss. Pixels with the ignore label are not augmented, but take part in the maps as in `cwd`.

    Returns:
      float32 `[..., C]`; the plain mean is the loss.

    Source:
      Yuan et al. (2022), see `fakd_kl`. The abstract says that FAKD combines with other losses;
      this bound is ours.
    """
    head = student_features, kernel, bias, labels, covariance, strength, ignore_label
    member = _check_distillation(head, teacher_logits, temperature)
    scores = class_scores(student_features, kernel, bias)
    teacher = jax.lax.stop_gradient(teacher_logits).astype(jnp.float32)
    temperature = jax.lax.stop_gradient(temperature)
    covariance = jax.lax.stop_gradient(covariance).astype(jnp.float32)
    classes = jnp.eye(kernel.shape[-1], dtype=jnp.float32)
    table = weight_spread(kernel.astype(jnp.float32), covariance, classes, 0 * classes)
    added = strength / (2 * temperature**2) * einsum("...k,kc->...c", member, table)
    growth = log_sum_growth(scores / temperature, added, axis=(-3, -2))
    divergence, *_ = softmax_kl(scores, teacher, temperature, axis=(-3, -2))
    return temperature**2 * (divergence + growth)


def _check_distillation(head, teacher_logits, temperature):
    """Checks the arguments. Returns the one-hot class of each pixel."""
    member = check_head(*head)
    check_map("teacher_logits", teacher_logits)
    check_shape("teacher_logits", teacher_logits, member.shape)
    check_positive("temperature", temperature)
    return member


def log_sum_growth(scores, added, axis):
    """Returns the growth of `log sum exp` by what is added to the scores; 0 if all are -inf."""
    largest = jax.lax.stop_gradient(jnp.max(scores, axis, keepdims=True))
    none = largest == -jnp.inf
    scores = jnp.where(none, 0.0, scores - largest)
    growth = jax.nn.logsumexp(scores + added, axis) - jax.nn.logsumexp(scores, axis)
    return jnp.where(jnp.squeeze(none, axis), 0.0, growth)
