"""SKD: similarities between the regions of an image."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.losses._arrays import flat_pixels, length
from kdjax.losses._checks import check_same_size
from kdjax.losses.pfs import table_distance


def skd_pairwise(
    student: Float[Array, "*batch H W D"],
    teacher: Float[Array, "*batch H W E"],
    *,
    window: int | tuple[int, int] | None = None,
    stop_norms: bool = True,
) -> Float[Array, "*batch"]:
    """SKD's pair-wise loss: squared distance of the cosine tables of max-pooled features.

    `mean_ij (a^S_ij - a^T_ij)^2` over pairs of nodes. A node is the maximum of every channel over
    one window of the map, and `a_ij` is the cosine of two nodes.

    Args:
      student: features `[..., H, W, D]`, any floating type.
      teacher: features `[..., H, W, E]` of the same size; they receive no gradient.
      window: rows and columns of a node. None is half the map, as in SKD: 2 x 2 nodes, or 3 x 3
        if the size is odd, because the last window may be cut off. CIRKD uses 2.
      stop_norms: True treats the nodes' norms as constants in the gradient, as SKD does. False
        differentiates through them, as CIRKD does. The value is the same.

    Returns:
      float32 `[...]`, one value per image; the plain mean is the loss.

    Source:
      Liu et al., "Structured knowledge distillation for semantic segmentation" (CVPR 2019),
      `CriterionPairWiseforWholeFeatAfterPool` of the authors' code; weight 0.5 in their script, 10
      in the journal text. CIRKD's `CriterionStructuralKD` is `window=2, stop_norms=False`, weight
      10. Two cases differ from both: pixels that tie for a window's maximum share the gradient
      here, and a node that is all zero has no similarity and no gradient.
    """
    check_same_size(student, teacher)
    if window is None:
        height, width = student.shape[-3:-1]
        window = max(height // 2, 1), max(width // 2, 1)
    rows, columns = (window, window) if isinstance(window, int) else window
    if min(rows, columns) < 1:
        raise ValueError(f"window must be positive, got {window}")
    student, teacher = (
        flat_pixels(_max_pool(features.astype(jnp.float32), rows, columns))
        for features in (student, jax.lax.stop_gradient(teacher))
    )
    norms = length(student)
    student = student / (jax.lax.stop_gradient(norms) if stop_norms else norms)
    return table_distance(student, teacher / length(teacher))


def _max_pool(
    features: Float[Array, "*batch H W C"], rows: int, columns: int
) -> Float[Array, "*batch h w C"]:
    """Returns the maximum over disjoint windows. Those at the far edges may be cut off."""
    *batch, height, width, channels = features.shape
    down, across = -(-height // rows), -(-width // columns)
    padding = [(0, down * rows - height), (0, across * columns - width), (0, 0)]
    features = jnp.pad(features, [(0, 0)] * len(batch) + padding, constant_values=-jnp.inf)
    # One axis after the other: JAX refuses a reshape of both at once if the batch is split over a
    # mesh with Explicit axes.
    windows = features.reshape(*batch, down, rows, across * columns, channels)
    windows = windows.reshape(*batch, down, rows, across, columns, channels)
    return jnp.max(windows, axis=(-4, -2))
