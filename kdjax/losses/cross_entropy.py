"""Cross-entropy of scores with labels, at the size of the scores or of the labels."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kdjax.losses._arrays import einsum
from kdjax.losses._checks import check_label_dtype, check_labels, check_map, check_shape, shape_of
from kdjax.losses.resizing import resizing_weights


def cross_entropy(
    logits: Float[Array, "*batch H W C"],
    labels: Int[Array, "*batch H W"],
    *,
    ignore_label: int = 255,
) -> Float[Array, "*batch H W"]:
    """Cross-entropy of every pixel with its label.

    `-log softmax(logits)[label]`, and 0 if the label is `ignore_label`. A label that is neither a
    class nor `ignore_label` gives NaN, so that a wrong label map does not go unnoticed.

    Args:
      logits: scores `[..., H, W, C]`, any floating type.
      labels: class indices `[..., H, W]`, any integer type.
      ignore_label: the label of pixels that do not count.

    Returns:
      float32 `[..., H, W]`, 0 if the label is `ignore_label`, whatever the scores are.
      `valid_mean(values, labels != ignore_label)` is the mean that PyTorch takes. The plain mean
      also divides by the ignored pixels, as mmsegmentation does by default.

    Examples:
      >>> logits = jnp.zeros((1, 2, 2, 4))
      >>> labels = jnp.array([[[0, 1], [2, 255]]])
      >>> values = cross_entropy(logits, labels)
      >>> float(valid_mean(values, labels != 255))  # log(4)
      1.3862943649291992
    """
    check_map("logits", logits)
    check_labels(labels, logits, "logits")
    labels = labels.astype(jnp.int32)
    valid = labels != ignore_label
    known = (labels >= 0) & (labels < logits.shape[-1])
    # Replaced before anything is computed: NaN at an ignored pixel would reach the gradient.
    values, *_ = _cross_entropy(jnp.where(valid[..., None], logits, 0), labels)
    return jnp.where(valid, jnp.where(known, values, jnp.nan), 0.0)


def upsampled_cross_entropy(
    logits: Float[Array, "*batch h w C"],
    labels: Int[Array, "*batch H W"],
    *,
    ignore_label: int = 255,
    align_corners: bool = False,
) -> Float[Array, "*batch H W"]:
    """Cross-entropy at the size of the labels, without logits of that size in memory.

    Value and gradient equal bilinear resizing of the logits to the labels' size followed by
    `cross_entropy`. Both steps process one band of rows at a time, and the backward pass repeats
    them, so that memory holds the resized logits of one band. A score that is not finite affects
    only the pixels that are interpolated from its cell. A score of -inf counts as -1e30.

    Args:
      logits: scores `[..., h, w, C]`, any floating type.
      labels: class indices `[..., H, W]`, any integer type.
      ignore_label: the label of pixels that do not count.
      align_corners: as in PyTorch's `interpolate`. False aligns the edges of the two maps
        (mmsegmentation). True aligns the centers of their corner pixels (the first public PSPNet
        code, SKD, TorchDistiller, CIRKD, ISDA). Neither smooths if the labels are the smaller map.

    Returns:
      float32 `[..., H, W]`, 0 if the label is `ignore_label`; see `cross_entropy`.
    """
    check_map("logits", logits)
    check_label_dtype(labels)
    check_shape("labels", labels, (*logits.shape[:-3], *labels.shape[-2:]))
    *batch, height, width = labels.shape
    to_width = resizing_weights(logits.shape[-2], width, align_corners=align_corners)
    to_height = resizing_weights(logits.shape[-3], height, align_corners=align_corners)

    # Band k takes the rows k, k + bands, k + 2 bands, ..., so that every device has its share of
    # every band if the rows of an image are split over devices.
    rows = max(_BAND_ROWS, -(-height // _MAX_BANDS))
    bands = -(-height // rows)
    missing = rows * bands - height
    to_height = jnp.pad(to_height, ((0, missing), (0, 0))).reshape(rows, bands, -1)
    labels = jnp.pad(
        labels.astype(jnp.int32),
        [(0, 0)] * len(batch) + [(0, missing), (0, 0)],
        constant_values=ignore_label,
    ).reshape(*batch, rows, bands, width)

    # Inside a band, width and height come first, in the order in which the matrix products write
    # them, so that the resized logits need no transpose.
    to_height = jnp.moveaxis(to_height, 1, 0)
    labels = jnp.moveaxis(labels, (-2, -1, -3), (0, 1, 2))
    logits = jnp.moveaxis(logits, (-3, -2), (0, 1)).astype(jnp.float32)

    # 0 times inf is NaN, so that a matrix product would spread a score that is not finite over the
    # whole row. Scores of -inf are therefore clipped. Cells with +inf or NaN are set to 0 and
    # marked, and the mark is resized like the scores.
    spoiled = jnp.any(~(logits < jnp.inf), axis=-1)
    logits = jnp.where(spoiled[..., None], 0.0, jnp.maximum(logits, _ALL_BUT_IMPOSSIBLE))
    spoiled = spoiled.astype(jnp.float32)

    def band(to_rows, labels):
        def resize(cells):
            tall = einsum("Hh,hw...->wH...", to_rows, cells)
            return einsum("Ww,w...->W...", to_width, tall)

        mark = jnp.where(resize(spoiled) > 0, jnp.nan, 0.0)
        return cross_entropy(resize(logits) + mark[..., None], labels, ignore_label=ignore_label)

    # prevent_cse=False is safe, because the compiler cannot merge computations across a loop.
    band = jax.checkpoint(band, prevent_cse=False)
    values = jax.lax.map(lambda xs: band(*xs), (to_height, labels))
    values = jnp.moveaxis(values, (0, 1, 2), (-2, -1, -3))
    return values.reshape(*batch, rows * bands, width)[..., :height, :]


def valid_mean(values: Float[Array, "*shape"], valid: Bool[Array, "*shape"]) -> Float[Array, ""]:
    """Mean over the valid entries, or 0 if there is none.

    `sum(values where valid) / max(count of valid, 1)` in float32. Invalid entries may hold
    anything, even NaN.

    Args:
      values: terms of a loss, any shape.
      valid: which of them count, the same shape.
    """
    if valid.dtype != jnp.bool_:
        raise TypeError(f"valid must be boolean, got {valid.dtype} {shape_of(valid)}")
    check_shape("valid", valid, values.shape)
    total = jnp.sum(values, where=valid, dtype=jnp.float32)
    return total / jnp.maximum(jnp.sum(valid, dtype=jnp.float32), 1.0)


# The smallest number of rows in a band, so that small images are not cut into slivers.
_BAND_ROWS = 16
# The largest number of bands, which sets the share of the resized logits that memory holds.
_MAX_BANDS = 32

# Even times the smallest interpolation weight, this is far below any finite score.
_ALL_BUT_IMPOSSIBLE = -1e30


# The derivative is written by hand, so that the backward pass reads the logits and two numbers per
# pixel. Automatic differentiation would keep a float32 copy of the exponentials.
@jax.custom_jvp
def _cross_entropy(logits, labels):
    """Returns the cross-entropy, and the two parts of the softmax's log-denominator.

    The two parts, the largest logit and the rest, keep the class axis. Their sum would lose digits
    if all logits share a large offset.
    """
    largest = jnp.max(logits, axis=-1, keepdims=True).astype(jnp.float32)
    shifted = logits.astype(jnp.float32) - largest
    log_sum = jnp.log(jnp.sum(jnp.exp(shifted), axis=-1))
    chosen = jnp.sum(shifted, axis=-1, where=_at_label(logits, labels))
    return log_sum - chosen, largest, log_sum[..., None]


@_cross_entropy.defjvp
def _cross_entropy_jvp(primals, tangents):
    logits, labels = primals
    _, largest, log_sum = out = _cross_entropy(logits, labels)

    # Linear in `change`. The checkpoint avoids storing the probabilities for the backward pass. It
    # also keeps the compiler from storing `logits - largest`, which the forward pass computes too.
    @jax.checkpoint
    def push(logits, largest, log_sum, change):
        probability = jnp.exp(logits.astype(jnp.float32) - largest - log_sum)
        change = change.astype(jnp.float32)
        return (
            jnp.sum((probability - _at_label(logits, labels)) * change, axis=-1),
            jnp.sum(probability * change, axis=-1, keepdims=True),
        )

    # The largest logit counts as a constant: a shift of it does not change the softmax.
    moved, moved_sum = push(logits, largest, log_sum, tangents[0])
    return out, (moved, jnp.zeros_like(largest), moved_sum)


def _at_label(logits, labels):
    return labels[..., None] == jnp.arange(logits.shape[-1])
