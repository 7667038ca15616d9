"""Lovász-softmax: a smooth stand-in for the IoU of each class."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kdjax.losses._arrays import is_class
from kdjax.losses._checks import check_labels, check_map


def lovasz_softmax(
    logits: Float[Array, "*batch H W C"],
    labels: Int[Array, "*batch H W"],
    *,
    ignore_label: int = 255,
) -> Float[Array, "C"]:
    """The Lovász extension of 1 minus the IoU, for every class over all pixels of the batch.

    The errors `|[label = c] - p_c|` of a class are sorted, largest first. Each is weighted by the
    amount by which the IoU falls if its pixel is the next one to be wrong.

    Args:
      logits: scores `[..., H, W, C]`, any floating type.
      labels: class indices `[..., H, W]`. Pixels whose label is no class do not count.
      ignore_label: the label of pixels that do not count.

    Returns:
      float32 `[C]`; the plain mean is the loss, which is the mean over the classes that occur in
      the labels. Other classes have 0.

    Source:
      Berman et al., "The Lovász-softmax loss" (CVPR 2018), the authors' code with
      `classes="present"` and `per_image=False`.
    """
    check_map("logits", logits)
    check_labels(labels, logits, "logits")
    classes = logits.shape[-1]
    chosen = is_class(labels, classes, ignore_label).reshape(-1, classes)
    valid = jnp.any(chosen, -1, keepdims=True)
    # Replaced before and after: NaN at an ignored pixel would reach the gradient.
    scores = jnp.where(valid, logits.reshape(-1, classes), 0).astype(jnp.float32)
    shares = jnp.where(valid, jax.nn.softmax(scores), 0.0)
    # An ignored pixel has no error, so it comes last and adds nothing.
    errors = jnp.abs(chosen - shares)
    order = jnp.argsort(jax.lax.stop_gradient(errors), axis=0, descending=True)
    ranked = jnp.take_along_axis(errors, order, axis=0)
    hits = jnp.take_along_axis(chosen, order, axis=0).astype(jnp.float32)
    size = jnp.sum(hits, axis=0)
    left = size - jnp.cumsum(hits, axis=0)
    union = size + jnp.cumsum(1 - hits, axis=0)
    # Without pixels of the class and without errors, the union is 0.
    lost = 1 - left / jnp.maximum(union, 1)
    steps = jnp.diff(lost, axis=0, prepend=0.0)
    present = size > 0
    values = jnp.where(present, jnp.sum(ranked * steps, axis=0), 0.0)
    return values * classes / jnp.maximum(jnp.sum(present), 1)
