"""PKD: correlation of features over a batch."""

from jaxtyping import Array, Float

from kdjax.losses.nfd import nfd


def pkd(
    student: Float[Array, "*batch H W C"],
    teacher: Float[Array, "*batch H W C"],
    *,
    eps: float = 1e-5,
    group: int = 0,
    axis_name: str | tuple[str, ...] | None = None,
) -> Float[Array, "*batch C"]:
    """PKD: 1 minus the correlation of a channel over the pixels of all images.

    It is half of `nfd` over `"batch_space"`.

    Args:
      student: features `[..., H, W, C]`, any floating type.
      teacher: features of the same shape; they receive no gradient.
      eps: added to the variance.
      group: the number of consecutive images that are normalized together; 0 for all.
      axis_name: as in `nfd`.

    Returns:
      float32 `[..., C]`; the plain mean is the loss.

    Source:
      Cao et al., "PKD: general distillation framework for object detectors via Pearson
      correlation coefficient" (NeurIPS 2022). mmrazor's `PKDLoss` is `(n - 1) / n` times this for
      n values per channel, because it takes the unbiased deviation, and adds 1e-6 to the deviation.
      Weight 6 or 10 for each level of a detector.
    """
    return 0.5 * nfd(
        student, teacher, axes="batch_space", eps=eps, group=group, axis_name=axis_name
    )
