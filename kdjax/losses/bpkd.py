"""BPKD: separate losses for the edges of classes and for the rest."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kdjax.losses._arrays import einsum
from kdjax.losses._checks import check_label_dtype, check_option, check_positive, check_same_shape
from kdjax.losses.cwd import cwd
from kdjax.losses.kl import pixelwise_kl


def bpkd(
    student: Float[Array, "*batch H W C"],
    teacher: Float[Array, "*batch H W C"],
    labels: Int[Array, "*batch rows columns"],
    *,
    part: Literal["body", "edge"] = "body",
    window: int = 7,
    temperature: float | Array = 1.0,
    ignore_label: int = 255,
) -> Float[Array, "*batch C"]:
    """Boundary-privileged distillation: per-pixel KL on the edges of a class, `cwd` elsewhere.

    A pixel of the labels is on an edge of a class if the window around it holds this class, another
    class, and no pixel without a class. `e` is the share of a map's cell that is on an edge.

    `"body"` is `cwd` of `(1 - e) * scores`. `"edge"` is the mean of `pixelwise_kl` over the class's
    edges, times the number of classes.

    Args:
      student: logits `[..., H, W, C]`, any floating type.
      teacher: logits of the same shape; they receive no gradient.
      labels: class indices at the size of the maps or larger.
      part: which part of the loss to return.
      window: rows and columns, in pixels of the labels.
      temperature: softens the distributions. A setting: it receives no gradient.
      ignore_label: the label of pixels that do not count.

    Returns:
      float32 `[..., C]`; the plain mean is the loss. A class without edges adds 0 to `"edge"`.

    Source:
      Liu et al., "BPKD: boundary privileged knowledge distillation for semantic segmentation" (WACV
      2024), our reading of two re-implementations. No training code was published. Weight 20 on the
      body, and 50 times 2 on the edges.
    """
    check_same_shape(student, teacher)
    check_label_dtype(labels)
    check_option("part", part, ("body", "edge"))
    check_positive("window", window)
    *batch, height, width, classes = student.shape
    if labels.shape[:-2] != (*batch,) or labels.shape[-2] < height or labels.shape[-1] < width:
        raise ValueError(
            "labels must have the batch of the maps and their size or more, got "
            f"{list(labels.shape)} for maps {list(student.shape)}"
        )
    edges = _edges(labels.astype(jnp.int32), (height, width), classes, window, ignore_label)
    if part == "body":
        student, teacher = (x.astype(jnp.float32) * (1 - edges) for x in (student, teacher))
        return cwd(student, teacher, temperature=temperature)
    values = pixelwise_kl(student, teacher, temperature=temperature)[..., None]
    total = jnp.sum(edges, (-3, -2))
    return classes * jnp.sum(edges * values, (-3, -2)) / jnp.where(total == 0, 1.0, total)


def _edges(labels, size, classes, window, ignore_label):
    """Returns the share of each cell that is on a class's edges, `[..., h, w, C]`."""
    known = (labels >= 0) & (labels < classes) & (labels != ignore_label)

    def near(mask):
        around, ones = (1,) * (mask.ndim - 2) + (window, window), (1,) * mask.ndim
        return jax.lax.reduce_window(mask, False, jax.lax.bitwise_or, around, ones, "SAME")

    # The rows and columns that a cell covers, fully or in part.
    down, across = (
        (pixel >= cell * old // new) & (pixel < -(-(cell + 1) * old // new))
        for old, new in zip(labels.shape[-2:], size, strict=True)
        for pixel, cell in [(np.arange(old), np.arange(new)[:, None])]
    )
    down, across = (np.float32(x / x.sum(-1, keepdims=True)) for x in (down, across))
    unknown = near(~known)

    def of_class(index):
        mask = labels == index
        edge = (near(mask) & near(known & ~mask) & ~unknown).astype(jnp.float32)
        return einsum("hr,...rc,wc->...hw", down, edge, across)

    # One class at a time, because masks of all classes at the labels' size take much memory.
    return jnp.moveaxis(jax.lax.map(of_class, jnp.arange(classes)), 0, -1)
