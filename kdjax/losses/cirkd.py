"""CIRKD: similarities between the pixels of several images."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.losses._arrays import by_group, einsum, everywhere, flat_pixels, length, sum_over_first
from kdjax.losses._checks import check_positive, check_same_size
from kdjax.losses._softmax import softmax_kl


def cirkd_minibatch(
    student: Float[Array, "*batch H W D"],
    teacher: Float[Array, "*batch H W E"],
    *,
    temperature: float | Array = 0.1,
    pool: int = 1,
    group: int = 0,
    axis_name: str | tuple[str, ...] | None = None,
) -> Float[Array, "*batch"]:
    """CIRKD's mini-batch loss: compares every pixel's similarity to the pixels of every image.

    `mean_ij KL(r^T_ij || r^S_ij)` over the pixels `i` of an image and all images `j` of the batch,
    with `r_ij = softmax_k(cos(f_i, f_k) / t)` over the pixels `k` of image `j`. Strips of rows are
    computed one at a time, so that memory is in proportion to the batch's pixels. Time is in
    proportion to their square.

    Args:
      student: features `[..., H, W, D]`, any floating type.
      teacher: features `[..., H, W, E]` of the same size; they receive no gradient.
      temperature: of the softmax. A setting: it receives no gradient.
      pool: rows and columns of the windows over which features are averaged first. Windows at the
        far edges may be cut off.
      group: the number of consecutive images that are compared with each other; 0 for all. The
        authors' code compares the 2 images of a device.
      axis_name: inside `shard_map`, the mesh axes over which the images of the batch are split.

    Returns:
      float32 `[...]`, one value per image; the plain mean is the loss.

    Source:
      Yang et al., "Cross-image relational knowledge distillation for semantic segmentation" (CVPR
      2022), the authors' code: weight 1, with per-pixel KL of weight 1 and two losses against a
      memory. They pool by 2 for SegFormer, whose maps are large.
    """
    check_same_size(student, teacher)
    check_positive("temperature", temperature)
    if not 1 <= pool <= min(student.shape[-3:-1]):
        raise ValueError(f"pool must be 1 to the size of the maps, got {pool}")
    scale = jnp.sqrt(jax.lax.stop_gradient(temperature))

    def directions(features):
        features = features.astype(jnp.float32)
        if student.ndim != 4:
            features = features.reshape(-1, *features.shape[-3:])
        features = by_group(features, group, axis_name) if group else features[None]
        if pool > 1:
            # Sums in place of means: only directions are compared.
            window = (1, 1, pool, pool, 1)
            missing = [(0, -size % step) for size, step in zip(features.shape, window, strict=True)]
            features = jax.lax.reduce_window(features, 0.0, jax.lax.add, window, window, missing)
        features = flat_pixels(features)
        return features / (length(features) * scale)

    sides = directions(student), directions(jax.lax.stop_gradient(teacher))
    return _across_images(*sides, axis_name).reshape(student.shape[:-3])


# The number of entries of all images' tables that memory holds at a time.
_ENTRIES = 2**23


def _across_images(student, teacher, axis_name):
    """Returns each image's mean divergence over the images of its group, `[groups, images]`."""
    groups, images, pixels, _ = student.shape
    rows = min(pixels, max(1, _ENTRIES // (groups * images * images * pixels)))
    strips = -(-pixels // rows)

    def in_strips(features):
        # Added rows are zero. Their similarities are 0 in both networks, so that they diverge by 0.
        features = jnp.pad(features, [(0, 0), (0, 0), (0, strips * rows - pixels), (0, 0)])
        return jnp.moveaxis(features.reshape(groups, images, strips, rows, -1), 2, 0)

    sides = in_strips(student), in_strips(teacher)
    others = [everywhere(side, 2) for side in sides]
    if axis_name is not None:
        others = [jax.lax.all_gather(side, axis_name, axis=2, tiled=True) for side in sides]
    real = jnp.arange(strips * rows).reshape(strips, 1, rows) < pixels

    def divergence(strip):
        # Indexed, and not passed as an entry, so that its gradient is added to that of `others`.
        table_s, table_t = (
            jnp.where(real, einsum("gird,ngjqd->girnjq", side[strip], other), -jnp.inf)
            for side, other in zip(sides, others, strict=True)
        )
        values, *_ = softmax_kl(table_s, table_t, 1.0, (-3, -1))
        return jnp.sum(values, (-2, -1))

    return sum_over_first(divergence, jnp.arange(strips)) / (pixels * others[0].shape[2])
