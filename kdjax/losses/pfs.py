"""PFS: similarities between the pixels of an image."""

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from kdjax.losses._arrays import einsum, flat_pixels, length
from kdjax.losses._checks import check_option, check_positive, check_same_size
from kdjax.losses._softmax import softmax_kl


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
      student: features `[..., H, W, D]`, any floating type.
      teacher: features `[..., H, W, E]` of the same size; they receive no gradient.
      similarity: the kind of table.
      temperature: of the softmax; the cosine form takes none. It receives no gradient.

    Returns:
      float32 `[...]`, one value per image; the plain mean is the loss.

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
    student, teacher = flat_pixels(student), flat_pixels(jax.lax.stop_gradient(teacher))
    if similarity == "cosine":
        if isinstance(temperature, Tracer) or temperature != 1:
            raise ValueError("temperature belongs to similarity='softmax'; cosines have none")
        student, teacher = (features / length(features) for features in (student, teacher))
        return table_distance(student, teacher)
    temperature = jax.lax.stop_gradient(temperature)
    student, teacher = (
        features / jnp.sqrt(temperature * math.sqrt(features.shape[-1]))
        for features in (student, teacher)
    )
    values, *_ = _similarity_kl(student, teacher)
    return jnp.mean(values, axis=-1)


def _table(rows, columns):
    return einsum("...id,...jd->...ij", rows, columns)


def table_distance(student, teacher):
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
