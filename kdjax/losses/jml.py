"""JML: the overlap of soft masks."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kdjax.losses._arrays import by_group, is_class
from kdjax.losses._checks import check_labels, check_option, check_positive, check_same_shape


def jml(
    student: Float[Array, "*batch H W C"],
    teacher: Float[Array, "*batch H W C"],
    labels: Int[Array, "*batch H W"],
    *,
    target: Literal["teacher", "labels"] = "teacher",
    smooth: float = 5e-7,
    group: int = 0,
    axis_name: str | tuple[str, ...] | None = None,
    ignore_label: int = 255,
) -> Float[Array, "*groups C"]:
    """Jaccard metric loss: 1 minus the overlap of two soft masks, for every class.

    `|q - p| / ((|q| + |p| + |q - p|) / 2 + smooth)`, 0 to 1. `|.|` is the mean absolute value over
    the pixels of all images, `q` the student's softmax of a class, and `p` its target. Unlike
    losses of products of probabilities, it is 0 if both are equal.

    Args:
      student: logits `[..., H, W, C]`, any floating type.
      teacher: logits of the same shape; they receive no gradient.
      labels: class indices `[..., H, W]`. Pixels whose label is no class do not count.
      target: `"teacher"` for the teacher's softmax, or `"labels"`. With labels, only classes that
        occur in the batch count.
      smooth: keeps a class that occurs nowhere finite; a share of the pixels.
      group: the number of consecutive images that are taken together; 0 for all.
      axis_name: inside `shard_map`, the mesh axes over which the images of the batch are split.
      ignore_label: the label of pixels that do not count.

    Returns:
      float32 `[C]`, or `[..., B / group, C]`; the plain mean is the loss.

    Source:
      Wang et al., "Jaccard metric losses: optimizing the Jaccard index with soft labels" (NeurIPS
      2023), the authors' code, at the size of the labels. Their code adds 1 pixel where this adds
      `smooth`, which is 1 pixel of 8 crops of 512 x 512. Relative to a cross-entropy of weight 1 on
      the main head, their weights are 6 for each of the two targets.
    """
    check_same_shape(student, teacher)
    check_labels(labels, student, "logits")
    check_option("target", target, ("teacher", "labels"))
    check_positive("smooth", smooth)
    chosen = is_class(labels, student.shape[-1], ignore_label)
    valid = jnp.any(chosen, -1, keepdims=True)

    def shares(logits):
        # Replaced before and after: NaN at an ignored pixel would reach the gradient.
        logits = jnp.where(valid, logits, 0).astype(jnp.float32)
        return jnp.where(valid, jax.nn.softmax(logits), 0.0)

    mine = shares(student)
    other = shares(jax.lax.stop_gradient(teacher)) if target == "teacher" else chosen
    other, over = other.astype(jnp.float32), tuple(range(mine.ndim - 1))
    if group:
        mine, other = (by_group(x, group, axis_name) for x in (mine, other))
        over = (-4, -3, -2)

    def mean(values):
        values = jnp.mean(values, over)
        return values if axis_name is None else jax.lax.pmean(values, axis_name)

    apart, size = mean(jnp.abs(mine - other)), mean(other)
    values = apart / ((mean(mine) + size + apart) / 2 + smooth)
    if target == "teacher":
        return values
    share = jnp.maximum(jnp.mean(size > 0, -1, keepdims=True), 1 / size.shape[-1])
    return jnp.where(size > 0, values, 0.0) / share
