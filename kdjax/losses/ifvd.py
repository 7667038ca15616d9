"""IFVD: similarity of a pixel to the center of its class."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kdjax.losses._arrays import einsum, is_class, length
from kdjax.losses._checks import check_labels, check_same_size


def ifvd(
    student: Float[Array, "*batch H W D"],
    teacher: Float[Array, "*batch H W E"],
    labels: Int[Array, "*batch H W"],
    *,
    num_classes: int = 256,
    ignore_label: int = 255,
) -> Float[Array, "*batch H W"]:
    """Intra-class feature variation: the similarity of a pixel to the center of its class.

    `(v^S - v^T)^2`, 0 to 4, with `v = cos(f_i, m_y)`. `m_y` is the mean of the image's features
    over the pixels that have the label of pixel `i`.

    Args:
      student: features `[..., H, W, D]`, any floating type.
      teacher: features `[..., H, W, E]` of the same size; they receive no gradient.
      labels: class indices `[..., H, W]`. Labels of `num_classes` and above add nothing.
      num_classes: number of classes. Time and memory are in proportion to it.
      ignore_label: the label of pixels that do not count.

    Returns:
      float32 `[..., H, W]`, 0 if the label is `ignore_label`. The plain mean over all pixels is the
      authors' loss; `valid_mean` takes the labeled pixels alone.

    Source:
      Wang et al., "Intra-class feature variation distillation for semantic segmentation" (ECCV
      2020), the authors' code. The gradient passes through the centers. The weight is 200 in their
      script, 50 in the paper, and 20 in CIRKD's code, always with per-pixel KL.
    """
    check_same_size(student, teacher)
    check_labels(labels, student, "features")
    *batch, height, width = labels.shape
    chosen = is_class(labels, num_classes, ignore_label)
    chosen = chosen.reshape(*batch, height * width, num_classes).astype(jnp.float32)
    valid = jnp.any(chosen, -1, keepdims=True)

    def likeness(features):
        features = features.astype(jnp.float32).reshape(*batch, height * width, -1)
        features = jnp.where(valid, features, 0.0)
        # A sum in place of the mean: the length of a center does not matter.
        centers = einsum("...pk,...pc->...kc", chosen, features)
        centers, features = centers / length(centers), features / length(features)
        return jnp.sum(chosen * einsum("...pc,...kc->...pk", features, centers), -1)

    apart = likeness(student) - likeness(jax.lax.stop_gradient(teacher))
    return jnp.square(apart).reshape(labels.shape)
