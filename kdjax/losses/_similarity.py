"""Losses that compare tables of similarities between pixels of one image, or of several."""

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from kdjax.losses._arrays import (
    by_group,
    check_option,
    check_positive,
    check_same_size,
    einsum,
    everywhere,
    length,
    max_pool,
    sum_over_first,
)
from kdjax.losses._logits import softmax_kl


def pfs(
    student: Float[Array, "*batch H W D"],
    teacher: Float[Array, "*batch H W E"],
    *,
    similarity: Literal["cosine", "softmax"] = "cosine",
    temperature: float | Array = 1.0,
) -> Float[Array, "*batch"]:
    """Pixel-wise feature similarities: compares every pixel's similarity to all other pixels.

    Each network has one table of similarities between its `P` pixels, with `f_i` the features of
    pixel `i`:

    - `"cosine"`: `a_ij = <f_i, f_j> / (|f_i| |f_j|)`. The loss is `mean_ij (a^S_ij - a^T_ij)^2`, 0
      to 4.
    - `"softmax"`: `r_ij = softmax_j(<f_i, f_j> / (t sqrt(D)))` with the network's own number of
      channels `D`. The loss is `mean_i KL(r^T_i || r^S_i)`.

    Only the tables are compared, so that the networks' channels may differ without an adapter.

    The cosine form computes `|S'S|^2 + |T'T|^2 - 2 |S'T|^2` (S, T: pixels by channels), whose
    matrices are channels by channels. It builds the P x P tables only if they cost less. The
    softmax form processes strips of rows, and repeats them in the backward pass. Memory is in
    proportion to P. Time is P D^2 for the cosine and P^2 D for the softmax.

    Args:
      student: Features `[..., H, W, D]`, any floating type.
      teacher: Features `[..., H, W, E]` of the same size; they receive no gradient.
      similarity: The kind of table.
      temperature: Of the softmax; the cosine form takes none. It receives no gradient.

    Returns:
      float32 `[...]`, one value per image; the plain mean is the loss.

    Raises:
      TypeError: If an input is not floating point.
      ValueError: If batch or size differ, `similarity` is unknown, the temperature is not
        positive, or one is given with `"cosine"`.

    Source:
      Shan, "Distilling pixel-wise feature similarities for semantic segmentation" (2019). The
      abstract describes the idea. Both tables, `sqrt(D)`, and the distances are our reading. No
      code was published. The cosine form is `skd_pairwise` without pooling and with
      `stop_norms=False`. A pixel whose features are all zero has no direction: its row is 0 and it
      receives no gradient through the norm.
    """
    check_same_size(student, teacher)
    check_option("similarity", similarity, ("cosine", "softmax"))
    check_positive("temperature", temperature)
    student, teacher = _pixels(student), _pixels(jax.lax.stop_gradient(teacher))
    if similarity == "cosine":
        if isinstance(temperature, Tracer) or temperature != 1:
            raise ValueError("temperature belongs to similarity='softmax'; cosines have none")
        student, teacher = (features / length(features) for features in (student, teacher))
        return _table_distance(student, teacher)
    temperature = jax.lax.stop_gradient(temperature)
    student, teacher = (
        features / jnp.sqrt(temperature * math.sqrt(features.shape[-1]))
        for features in (student, teacher)
    )
    values, *_ = _similarity_kl(student, teacher)
    return jnp.mean(values, axis=-1)


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
      student: Features `[..., H, W, D]`, any floating type.
      teacher: Features `[..., H, W, E]` of the same size; they receive no gradient.
      temperature: Of the softmax. A setting: it receives no gradient.
      pool: Rows and columns of the windows over which features are averaged first. Windows at the
        far edges may be cut off.
      group: The number of consecutive images that are compared with each other; 0 for all. The
        authors' code compares the 2 images of a device.
      axis_name: Inside `shard_map`, the mesh axes over which the images of the batch are split.

    Returns:
      float32 `[...]`, one value per image; the plain mean is the loss.

    Raises:
      TypeError: If an input is not floating point.
      ValueError: If batch or size differ, the temperature or `pool` are not positive, or the group
        does not divide the batch.

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
        features = _pixels(features)
        return features / (length(features) * scale)

    sides = directions(student), directions(jax.lax.stop_gradient(teacher))
    return _across_images(*sides, axis_name).reshape(student.shape[:-3])


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
      student: Features `[..., H, W, D]`, any floating type.
      teacher: Features `[..., H, W, E]` of the same size; they receive no gradient.
      window: Rows and columns of a node. None is half the map, as in SKD: 2 x 2 nodes, or 3 x 3
        if the size is odd, because the last window may be cut off. CIRKD uses 2.
      stop_norms: True treats the nodes' norms as constants in the gradient, as SKD does. False
        differentiates through them, as CIRKD does. The value is the same.

    Returns:
      float32 `[...]`, one value per image; the plain mean is the loss.

    Raises:
      TypeError: If an input is not floating point.
      ValueError: If batch or size differ or the window is not positive.

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
        _pixels(max_pool(features.astype(jnp.float32), rows, columns))
        for features in (student, jax.lax.stop_gradient(teacher))
    )
    norms = length(student)
    student = student / (jax.lax.stop_gradient(norms) if stop_norms else norms)
    return _table_distance(student, teacher / length(teacher))


def _pixels(features):
    *batch, height, width, channels = features.shape
    return features.astype(jnp.float32).reshape(*batch, height * width, channels)


def _table(rows, columns):
    return einsum("...id,...jd->...ij", rows, columns)


def _table_distance(student, teacher):
    """Returns the mean squared difference of the tables `S S'` and `T T'`."""
    pixels, (d, e) = student.shape[-2], (student.shape[-1], teacher.shape[-1])
    if pixels * (d + e) <= d * d + d * e + e * e:
        table_s, table_t = (_table(x, x) for x in (student, teacher))
        return jnp.mean(jnp.square(table_s - table_t), axis=(-2, -1))
    return _gram_distance(student, teacher) / float(pixels) ** 2


@jax.custom_jvp
def _gram_distance(student, teacher):
    """Returns `|S S' - T T'|^2`, computed from matrices of channels by channels."""
    return _grams(student, teacher)[0]


@_gram_distance.defjvp
def _gram_distance_jvp(primals, tangents):
    # By hand, because automatic differentiation makes three products of channels by pixels out of
    # these two, and transposes each.
    (student, teacher), (change, _) = primals, tangents
    value, within_s, across = _grams(student, teacher)
    moved = jnp.sum(within_s * einsum("...id,...ie->...de", student, change), axis=(-2, -1))
    moved -= jnp.sum(across * einsum("...id,...ie->...de", change, teacher), axis=(-2, -1))
    return value, 4.0 * moved


def _grams(student, teacher):
    """Returns the squared distance, `S'S`, and `S'T`."""
    within_s, within_t, across = (
        einsum("...id,...ie->...de", x, y)
        for x, y in ((student, student), (teacher, teacher), (student, teacher))
    )
    s, t, both = (jnp.sum(jnp.square(x), axis=(-2, -1)) for x in (within_s, within_t, across))
    return s + t - 2.0 * both, within_s, across


# The number of entries of one image's table that memory holds at a time.
_STRIP = 2**21


def _strip_rows(pixels):
    return max(1, min(pixels // 4, _STRIP // pixels))


def _over_strips(function, carry, pixels):
    """Folds `function(carry, first, fresh)` over strips of rows that start at row `first`.

    The last strip overlaps the one before it. `fresh` marks the rows that no earlier strip has.
    """
    rows = _strip_rows(pixels)

    def step(strip, carry):
        first = jnp.minimum(strip * rows, pixels - rows)
        return function(carry, first, first + jnp.arange(rows) >= strip * rows)

    return jax.lax.fori_loop(0, -(-pixels // rows), step, carry)


@jax.custom_jvp
def _similarity_kl(student, teacher):
    """Returns `KL(softmax(T T') || softmax(S S'))` of every row, and the rows' normalizers."""
    pixels = student.shape[-2]

    def write(out, first, fresh):
        del fresh  # rows that overlap are written twice
        table_s, table_t = (_table(_rows(x, first, -2), x) for x in (student, teacher))
        values, *normalizers = softmax_kl(table_s, table_t, 1.0, -1)
        parts = values, *((x.largest + x.log_sum)[..., 0] for x in normalizers)
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(whole, part, first, -1)
            for whole, part in zip(out, parts, strict=True)
        )

    # Zeros computed from the features, so that they have the same sharding.
    empty = jnp.zeros_like(student[..., 0] + teacher[..., 0])
    return _over_strips(write, (empty, empty, empty), pixels)


@_similarity_kl.defjvp
def _similarity_kl_jvp(primals, tangents):
    (student, teacher), (change, _) = primals, tangents
    _, normalizer_s, normalizer_t = out = _similarity_kl(student, teacher)

    # Linear in `change`. The checkpoint avoids storing the tables for the backward pass.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def add_strip(moved, first, fresh):
        table_s, table_t = (_table(_rows(x, first, -2), x) for x in (student, teacher))
        turned = jnp.where(fresh[:, None], _table(_rows(change, first, -2), student), 0.0)
        # Row i of `turned` is the change of the table's entries ij, and of the entries ji, because
        # the table is symmetric. It therefore changes row i and every row j.
        here = _rows(normalizer_s, first, -1)[..., :, None]
        there = _rows(normalizer_t, first, -1)[..., :, None]
        rows_s, columns_s = (jnp.exp(table_s - x) for x in (here, normalizer_s[..., None, :]))
        rows = rows_s - jnp.exp(table_t - there)
        columns = columns_s - jnp.exp(table_t - normalizer_t[..., None, :])
        return tuple(
            _add_rows(total + jnp.sum(c * turned, axis=-2), jnp.sum(r * turned, axis=-1), first)
            for total, r, c in zip(moved, (rows, rows_s), (columns, columns_s), strict=True)
        )

    still = jnp.zeros_like(normalizer_t)
    moved = _over_strips(add_strip, (still, still), student.shape[-2])
    return out, (*moved, still)


def _rows(array, first, axis):
    """Returns the rows of the strip that starts at row `first`."""
    rows = _strip_rows(array.shape[axis])
    return jax.lax.dynamic_slice_in_dim(array, first, rows, axis)


def _add_rows(array, added, first):
    here = _rows(array, first, -1)
    return jax.lax.dynamic_update_slice_in_dim(array, here + added, first, -1)


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
