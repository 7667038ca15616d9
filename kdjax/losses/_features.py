"""Losses that compare features value by value, or the places where they are large."""

import itertools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.losses._arrays import (
    by_group,
    check_map,
    check_option,
    check_positive,
    check_same_shape,
    check_same_size,
    length,
)


def l2(
    student: Float[Array, "*batch H W C"], teacher: Float[Array, "*batch H W C"]
) -> Float[Array, "*batch H W"]:
    """Plain squared distance of features: `mean_c (student_c - teacher_c)^2` at every pixel.

    The loss grows with the square of the teacher's scale, so that a weight that suits one teacher
    may not suit another. `nfd` and `pkd` remove the scale first.

    Args:
      student: Features `[..., H, W, C]`, any floating type, after a 1x1 convolution. The authors
        learn one even if the networks' channels agree.
      teacher: Features of the same shape; they receive no gradient.

    Returns:
      float32 `[..., H, W]`; the plain mean is the loss.

    Raises:
      TypeError: If an input is not floating point.
      ValueError: If the shapes differ.

    Source:
      Romero et al., "FitNets: hints for thin deep nets" (ICLR 2015), as CIRKD runs it on the map
      before the classifier: the mean over all values, with per-pixel KL of weight 1. CIRKD's
      weight is 10. Its second version has 1 on Cityscapes and ADE20K, and 10 on VOC and COCO-Stuff.
      Ignored pixels take part.
    """
    check_same_shape(student, teacher)
    student, teacher = (
        features.astype(jnp.float32) for features in (student, jax.lax.stop_gradient(teacher))
    )
    return jnp.mean(jnp.square(student - teacher), axis=-1)


def nfd(
    student: Float[Array, "*batch H W C"],
    teacher: Float[Array, "*batch H W C"],
    *,
    axes: Literal["space", "batch_space", "channel", "all"] = "space",
    eps: float = 1e-5,
    group: int = 0,
    axis_name: str | tuple[str, ...] | None = None,
) -> Float[Array, "*batch C"]:
    """Normalized feature distillation: squared distance of features after normalization.

    `mean_i (N(student) - N(teacher))^2` over the pixels `i`, with `N(f) = (f - m) / sqrt(v + eps)`.
    `m` and `v` are the mean and the (biased) variance over

    - `"space"`: the pixels, for each image and channel. The loss is then `2 (1 - correlation)`, 0
      to 4, and ignores the scale and the level of a channel.
    - `"batch_space"`: the pixels of all images together, for each channel. Twice PKD.
    - `"channel"`: the channels, for each pixel, as in layer normalization.
    - `"all"`: all pixels and channels of an image.

    Args:
      student: Features `[..., H, W, C]`, any floating type, after a 1x1 convolution if the
        networks' channels differ. Its bias has no effect under `"space"` and `"batch_space"`.
      teacher: Features of the same shape; they receive no gradient.
      axes: The axes that are normalized together.
      eps: Added to the variance; keeps a constant channel finite.
      group: For `"batch_space"`, the number of consecutive images that are normalized together; 0
        for all. Code that runs one process per device normalizes the images of each device.
      axis_name: For `"batch_space"` inside `shard_map`, the mesh axes over which the images of the
        batch are split. Without a name, every device normalizes its own images.

    Returns:
      float32 `[..., C]`, the mean over the pixels of each channel, for all `axes`; the plain mean
      is the loss.

    Raises:
      TypeError: If an input is not floating point.
      ValueError: If the shapes differ, `axes` is unknown, `eps` is not positive, the group does
        not divide the batch, or `axis_name` or a group is given without `"batch_space"`.

    Source:
      Liu, Yang, Chen, "Normalized feature distillation for semantic segmentation" (2022). The
      abstract asks for normalized features and a plain distance. The axes, the variance, eps, and
      the squared mean are our reading. No code was published. Third-party code takes the unbiased
      variance without eps (NaN on constant channels) and the unsquared norm of the whole batch.
      PKD in mmrazor is half of `"batch_space"`, except for its unbiased variance.
    """
    check_same_shape(student, teacher)
    check_positive("eps", eps)
    over, shape = _over(axes, student.ndim, group or axis_name), student.shape
    if group:
        student, teacher = (by_group(features, group, axis_name) for features in (student, teacher))
        over = (-4, -3, -2)
    student, teacher = (
        _normalize(features, over, eps, axis_name)
        for features in (student, jax.lax.stop_gradient(teacher))
    )
    difference = student - teacher
    return jnp.mean(jnp.square(difference), axis=(-3, -2)).reshape(*shape[:-3], shape[-1])


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
      student: Features `[..., H, W, C]`, any floating type.
      teacher: Features of the same shape; they receive no gradient.
      eps: Added to the variance.
      group: The number of consecutive images that are normalized together; 0 for all.
      axis_name: As in `nfd`.

    Returns:
      float32 `[..., C]`; the plain mean is the loss.

    Raises:
      TypeError: If an input is not floating point.
      ValueError: As `nfd`.

    Source:
      Cao et al., "PKD: general distillation framework for object detectors via Pearson
      correlation coefficient" (NeurIPS 2022). mmrazor's `PKDLoss` is `(n - 1) / n` times this for
      n values per channel, because it takes the unbiased deviation, and adds 1e-6 to the deviation.
      Weight 6 or 10 for each level of a detector.
    """
    return 0.5 * nfd(
        student, teacher, axes="batch_space", eps=eps, group=group, axis_name=axis_name
    )


def attention_transfer(
    student: Float[Array, "*batch H W D"], teacher: Float[Array, "*batch H W E"]
) -> Float[Array, "*batch"]:
    """Attention transfer: squared distance of two maps' attention.

    `sum_i (a^S_i - a^T_i)^2 = 2 (1 - cos(a^S, a^T))`, 0 to 2. A map's attention is
    `a_i = e_i / |e|`, with `e_i` the mean square of the features of pixel `i`.

    Args:
      student: Features `[..., H, W, D]`, any floating type.
      teacher: Features `[..., H, W, E]` of the same size; they receive no gradient.

    Returns:
      float32 `[...]`, one value per image; the plain mean is the loss.

    Raises:
      TypeError: If an input is not floating point.
      ValueError: If batch or size differ.

    Source:
      Zagoruyko, Komodakis, "Paying more attention to attention" (ICLR 2017). CIRKD, mmrazor, and
      RepDistiller take the mean over the P pixels, and this function takes the sum. A weight `w`
      there is `w / P` here: CIRKD's 10000 at 64 x 128 pixels is 1.2.
    """
    check_same_size(student, teacher)
    student, teacher = (_attention(x) for x in (student, jax.lax.stop_gradient(teacher)))
    return jnp.sum(jnp.square(student - teacher), axis=(-2, -1))


def dsd_pairs(
    student: Sequence[Float[Array, "*batch H W _"]],
    teacher: Sequence[Float[Array, "*batch H W _"]],
) -> Float[Array, "*batch pairs"]:
    """DSD's pixel-wise similarity: how attention changes from one map of a network to another.

    `sum_i (r^S_i - r^T_i)^2 = 2 (1 - cos(r^S, r^T))`, 0 to 4, for every pair of maps, with
    `r = (b - a) / |b - a|` over the pixels. `a` and `b` are the attention of the pair's maps, as in
    `attention_transfer`.

    Args:
      student: Two or more maps `[..., H, W, C]` of one size, in the order of the network. The
        authors take the auxiliary scores, the features before the classifier, and the scores.
      teacher: As many maps of the same size; they receive no gradient.

    Returns:
      float32 `[..., pairs]`; the plain mean is the loss.

    Raises:
      TypeError: If a map is not floating point.
      ValueError: If a side has fewer than two maps or the two have not as many, or batch or size
        differ.

    Source:
      Feng et al., "Double similarity distillation for semantic image segmentation" (TIP 2021), as
      in CIRKD's re-implementation. No code by the authors was found. CIRKD takes the mean over the
      P pixels, so that its weight of 1000 at 64 x 128 pixels is 0.12 here. The category-wise half
      of the method is left out, because it is about 1e-6 at its weight.
    """
    if not isinstance(student, Sequence) or not len(student) == len(teacher) >= 2:
        raise ValueError("dsd_pairs compares pairs of maps: give two or more of each network")
    for mine, other in zip(student, teacher, strict=True):
        check_same_size(mine, other)
        check_same_size(student[0], mine)
    turns = []
    for maps in (student, jax.lax.stop_gradient(teacher)):
        places = [_attention(features) for features in maps]
        turns.append([_direction(b - a) for a, b in itertools.combinations(places, 2)])
    apart = [jnp.square(mine - other) for mine, other in zip(*turns, strict=True)]
    return jnp.stack([jnp.sum(square, axis=(-2, -1)) for square in apart], axis=-1)


def _attention(features):
    """Returns the mean square of every pixel's features, scaled to length 1 over the image."""
    return _direction(jnp.mean(jnp.square(features.astype(jnp.float32)), axis=-1))


def _direction(image):
    """Scales an image to length 1 over its pixels; an image of zeros stays zero."""
    # The largest value cancels. Without it, squares of large numbers would not be finite.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(image), (-2, -1), keepdims=True))
    image = image / jnp.where(largest == 0, 1.0, largest)
    return image / length(image, (-2, -1))


def dead_channels(
    features: Float[Array, "*batch H W C"],
    *,
    axes: Literal["space", "batch_space", "channel", "all"] = "space",
    eps: float = 1e-5,
    axis_name: str | tuple[str, ...] | None = None,
) -> Bool[Array, "..."]:
    """Marks channels that hardly vary over an image, which `nfd` cannot normalize.

    A channel is dead if its variance is at most `eps`, which then dominates the divisor in `nfd`. A
    dead channel of the teacher teaches nothing and adds a constant of about 1 to the loss. A dead
    channel of the student receives a gradient of the order of `1 / sqrt(eps)`. Under `jit` with
    `nfd` of the same arrays, this function adds almost no work: both read the same variances.

    Args:
      features: `[..., H, W, C]`, any floating type.
      axes: As in `nfd`.
      eps: As in `nfd`.
      axis_name: As in `nfd`.

    Returns:
      bool, one value for each variance in `nfd`: `[..., C]` for `"space"`, `[C]` for
      `"batch_space"`, `[..., H, W]` for `"channel"`, `[...]` for `"all"`.

    Raises:
      TypeError: If the features are not floating point.
      ValueError: As `nfd`.
    """
    check_map("features", features)
    check_positive("eps", eps)
    over = _over(axes, features.ndim, axis_name)
    _, variance = moments(jax.lax.stop_gradient(features), over, axis_name)
    return jnp.squeeze(variance, over) <= eps


def _over(axes, ndim, together):
    options = {
        "space": (-3, -2),
        "batch_space": (*range(ndim - 3), -3, -2),
        "channel": (-1,),
        "all": (-3, -2, -1),
    }
    check_option("axes", axes, tuple(options))
    if together is not None and axes != "batch_space":
        raise ValueError(
            "axis_name and group belong to axes='batch_space'; "
            f"{axes!r} normalizes each image by itself"
        )
    return options[axes]


def _normalize(features, axes, eps, axis_name):
    centred, variance = moments(features, axes, axis_name)
    return centred * jax.lax.rsqrt(variance + eps)


def moments(features, axes, axis_name):
    """Returns the features minus their mean, and the variance, which keeps `axes`."""
    features = features.astype(jnp.float32)
    # A channel's own value is subtracted first, so that a constant channel is exactly 0, and a
    # small variation around a large level keeps its digits. For several images, this is the
    # largest of their first pixels, because all devices need the same number.
    origin = jax.lax.stop_gradient(features)
    for axis in reversed(axes):
        if axis < 0:
            origin = jax.lax.index_in_dim(origin, 0, axis)
        else:
            origin = jnp.max(origin, axis, keepdims=True)
    if axis_name is not None:
        origin = jax.lax.pmax(origin, axis_name)

    def mean(array):
        array = jnp.mean(array, axes, keepdims=True)
        return array if axis_name is None else jax.lax.pmean(array, axis_name)

    centred = features - origin
    centred -= mean(centred)
    return centred, mean(jnp.square(centred))
