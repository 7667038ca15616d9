"""ISDA: cross-entropy under infinitely many augmentations of the features.

Every feature vector is augmented by Gaussian noise with the covariance of its class. The expected
loss has an upper bound in closed form. It follows from `E exp(u.z) = exp(u' Sigma u / 2)` and
`E log <= log E`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kdjax.losses._arrays import einsum, is_class, sum_over_first
from kdjax.losses._checks import check_labels, check_map, check_positive, check_shape
from kdjax.losses.cross_entropy import cross_entropy


def isda_logits(
    features: Float[Array, "*batch H W A"],
    kernel: Float[Array, "A C"],
    bias: Float[Array, " C"] | None,
    labels: Int[Array, "*batch H W"],
    covariance: Float[Array, "C A"] | Float[Array, "C A A"],
    *,
    strength: float | Array,
    ignore_label: int = 255,
) -> Float[Array, "*batch H W C"]:
    """Scores whose cross-entropy bounds the expected cross-entropy under augmented features.

    `s_j + strength / 2 (w_j - w_y)' Sigma_y (w_j - w_y)` with `s = features kernel + bias` and `y`
    the pixel's label; plain scores if the label is `ignore_label`. Use them only for cross-entropy
    with the labels. ISDA resizes them to the labels' size first:
    `upsampled_cross_entropy(isda_logits(...), labels, align_corners=True)`.

    Args:
      features: input `[..., H, W, A]` of the last 1x1 convolution.
      kernel: its kernel `[A, C]`.
      bias: its bias `[C]`, or None.
      labels: class indices `[..., H, W]`, nearest-resized to the features' size.
      covariance: of the features in each class, `[C, A]` (diagonal) or `[C, A, A]`. It receives no
        gradient; features and kernel do.
      strength: scale of the augmentation. In segmentation, ISDA increases it linearly from 0 to
        7.5.
      ignore_label: the label of pixels that are not augmented.

    Returns:
      float32 `[..., H, W, C]`.

    Source:
      Wang et al., "Implicit semantic data augmentation for deep networks" (NeurIPS 2019), the
      formula as in the authors' segmentation code, which uses the diagonal covariance.
    """
    member = check_head(features, kernel, bias, labels, covariance, strength, ignore_label)
    kernel = kernel.astype(jnp.float32)
    covariance = jax.lax.stop_gradient(covariance).astype(jnp.float32)
    centered = kernel - jnp.mean(kernel, axis=-1, keepdims=True)
    classes = jnp.eye(kernel.shape[-1], dtype=jnp.float32)
    table = weight_spread(centered, covariance, classes, classes)
    return class_scores(features, kernel, bias) + strength / 2 * einsum(
        "...k,kj->...j", member, table
    )


def isda_cross_entropy(
    features: Float[Array, "*batch H W A"],
    kernel: Float[Array, "A C"],
    bias: Float[Array, " C"] | None,
    labels: Int[Array, "*batch H W"],
    covariance: Float[Array, "C A"] | Float[Array, "C A A"],
    *,
    strength: float | Array,
    ignore_label: int = 255,
) -> Float[Array, "*batch H W"]:
    """Implicit semantic data augmentation: `cross_entropy` of `isda_logits`.

    An upper bound of the expected cross-entropy if every feature vector is augmented by noise of
    `N(0, strength Sigma_y)`. At strength 0, it is the plain cross-entropy. The arguments are those
    of `isda_logits`.

    Returns:
      float32 `[..., H, W]`, 0 if the label is `ignore_label`; see `cross_entropy`.
    """
    check_map("features", features)
    check_labels(labels, features, "features")
    # Replaced before anything is computed: NaN at an ignored pixel would reach the gradient.
    valid = labels.astype(jnp.int32) != ignore_label
    features = jnp.where(valid[..., None], features, 0)
    logits = isda_logits(
        features, kernel, bias, labels, covariance, strength=strength, ignore_label=ignore_label
    )
    return cross_entropy(logits, labels, ignore_label=ignore_label)


def check_head(features, kernel, bias, labels, covariance, strength, ignore_label):
    """Checks the student's arguments. Returns the one-hot class of each pixel."""
    check_map("features", features)
    channels, classes = features.shape[-1], kernel.shape[-1]
    check_shape("kernel", kernel, (channels, classes))
    if bias is not None:
        check_shape("bias", bias, (classes,))
    check_labels(labels, features, "features")
    check_shape("covariance", covariance, (classes, channels), (classes, channels, channels))
    check_positive("strength", strength, or_zero=True)
    return is_class(labels, classes, ignore_label).astype(jnp.float32)


def class_scores(features, kernel, bias):
    """Returns the scores that the last 1x1 convolution makes of its input, in float32."""
    scores = einsum("...a,ac->...c", features.astype(jnp.float32), kernel.astype(jnp.float32))
    return scores if bias is None else scores + bias.astype(jnp.float32)


def weight_spread(kernel, covariance, member, anchor):
    """Returns `(w_j - v)' Sigma_y (w_j - v)` for every class j, with `v = sum_c anchor_c w_c`.

    `member` `[..., C]` is the one-hot class y that selects the covariance. A row of zeros selects
    none.
    """
    if covariance.ndim == 2:
        variance = einsum("...k,ka->...a", member, covariance)
        center = einsum("...c,ac->...a", anchor, kernel)
        return (
            einsum("...a,aj->...j", variance, jnp.square(kernel))
            - 2 * einsum("...a,aj->...j", variance * center, kernel)
            + jnp.sum(variance * jnp.square(center), axis=-1, keepdims=True)
        )

    # Class by class, because one covariance per pixel would not fit in memory.
    def class_spread(of_class):
        member, covariance = of_class
        gram = einsum("ai,ab,bj->ij", kernel, covariance, kernel)
        towards = einsum("...c,cj->...j", anchor, gram)
        spread = jnp.diagonal(gram) - 2 * towards
        spread += jnp.sum(towards * anchor, axis=-1, keepdims=True)
        return member[..., None] * spread

    return sum_over_first(class_spread, (jnp.moveaxis(member, -1, 0), covariance))
