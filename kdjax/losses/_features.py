"""Imitation of the teacher's features, value by value, or of where they respond."""

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

    The scale of the teacher's features is that of the loss: a weight that suits one teacher is
    another for the next. `nfd` and `pkd` take the scale out first.

    Args:
      student: Features `[..., H, W, C]`, any floating type; after a 1x1 convolution, which the
        authors learn also where the networks' channels agree.
      teacher: Features of the same shape; they receive no gradient.

    Returns:
      float32 `[..., H, W]`; the plain mean is the loss.

    Raises:
      TypeError: If an input is not floating point.
      ValueError: If the shapes differ.

    Source:
      Romero et al., "FitNets: hints for thin deep nets" (ICLR 2015), as CIRKD runs it on the map
      before the classifier: the mean over all values, beside per-pixel KL of weight 1. Its weight
      is 10; version 2 has 1 on Cityscapes and ADE20K and 10 on VOC and COCO-Stuff. Ignored pixels
      take part.
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
    """Normalized feature distillation: squared distance of features freed from their scale.

    `mean_i (N(student) - N(teacher))^2` over the pixels `i`, with `N(f) = (f - m) / sqrt(v + eps)`
    and `m`, `v` the mean and the (biased) variance over

    - `"space"`: the pixels, for each image and channel. The loss is then `2 (1 - correlation)`, 0
      to 4: a channel is asked where it responds, neither how strongly nor around which level;
    - `"batch_space"`: the pixels of all images together, for each channel. Twice PKD;
    - `"channel"`: the channels, for each pixel, as in layer normalization;
    - `"all"`: all pixels and channels of an image.

    Args:
      student: Features `[..., H, W, C]`, any floating type; after a 1x1 convolution where the
        networks' channels differ. Its bias has no effect under `"space"` and `"batch_space"`.
      teacher: Features of the same shape; they receive no gradient.
      axes: What is normalized together.
      eps: Added to the variance; keeps a constant channel finite.
      group: For `"batch_space"`, how many consecutive images are normalized together, as on the
        devices of code that runs one process for each; 0 for all.
      axis_name: Inside `shard_map`, the mesh axes over which the images of the batch are spread,
        for `"batch_space"`; without it every device normalizes its own. Under `jit` alone the
        batch is the whole batch.

    Returns:
      float32 `[..., C]`, the mean over the pixels of each channel whichever `axes` is chosen;
      the plain mean is the loss.

    Raises:
      TypeError: If an input is not floating point.
      ValueError: If the shapes differ, `axes` is unknown, `eps` is not positive, the group does
        not divide the batch, or an axis or a group is given where each image is normalized by
        itself.

    Source:
      Liu, Yang, Chen, "Normalized feature distillation for semantic segmentation" (2022). The
      abstract asks for normalized features and a plain distance; axes, variance, eps and the
      squared mean are our reading. No code was published. Third-party versions take the
      unbiased variance without eps (NaN on constant channels) and the unsquared norm of the
      whole batch. PKD in mmrazor is half of `"batch_space"` up to the unbiased variance.
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

    Half of `nfd` over `"batch_space"`.

    Args:
      student: Features `[..., H, W, C]`, any floating type.
      teacher: Features of the same shape; they receive no gradient.
      eps: Added to the variance.
      group: How many consecutive images are normalized together; 0 for all.
      axis_name: As in `nfd`.

    Returns:
      float32 `[..., C]`; the plain mean is the loss.

    Raises:
      TypeError: If an input is not floating point.
      ValueError: As `nfd`.

    Source:
      Cao et al., "PKD: general distillation framework for object detectors via Pearson
      correlation coefficient" (NeurIPS 2022), `PKDLoss` of mmrazor, which is `(n - 1) / n` of this
      for n values a channel: it takes the unbiased deviation, and adds 1e-6 to it. Weight 6 or 10
      for each of a detector's levels.
    """
    return 0.5 * nfd(
        student, teacher, axes="batch_space", eps=eps, group=group, axis_name=axis_name
    )


def attention_transfer(
    student: Float[Array, "*batch H W D"], teacher: Float[Array, "*batch H W E"]
) -> Float[Array, "*batch"]:
    """Attention transfer: squared distance of where the two maps respond.

    `sum_i (a^S_i - a^T_i)^2 = 2 (1 - cos(a^S, a^T))`, 0 to 2, with a map's attention
    `a_i = e_i / |e|` and `e_i` the mean square of pixel `i`'s features.

    Args:
      student: Features `[..., H, W, D]`, any floating type.
      teacher: Features `[..., H, W, E]` of the same size; they receive no gradient.

    Returns:
      float32 `[...]`, one value per image; the plain mean is the loss.

    Raises:
      TypeError: If an input is not floating point.
      ValueError: If batch or size differ.

    Source:
      Zagoruyko, Komodakis, "Paying more attention to attention" (ICLR 2017). The field's code
      (CIRKD, mmrazor, RepDistiller) takes the mean over the P pixels where this takes the sum, so
      that a weight `w` there is `w / P` here: CIRKD's 10000 at 64 x 128 is 1.2.
    """
    check_same_size(student, teacher)
    student, teacher = (_attention(x) for x in (student, jax.lax.stop_gradient(teacher)))
    return jnp.sum(jnp.square(student - teacher), axis=(-2, -1))


def dsd_pairs(
    student: Sequence[Float[Array, "*batch H W _"]],
    teacher: Sequence[Float[Array, "*batch H W _"]],
) -> Float[Array, "*batch pairs"]:
    """DSD's pixel-wise similarity: how attention moves from one map of a network to another.

    `sum_i (r^S_i - r^T_i)^2 = 2 (1 - cos(r^S, r^T))`, 0 to 4, for every pair of maps, with
    `r = (b - a) / |b - a|` over the pixels and `a`, `b` the pair's attention as in
    `attention_transfer`.

    Args:
      student: Two maps or more `[..., H, W, C]` of one size, in the order of the network; the
        authors' are the auxiliary scores, the features before the classifier, and the scores.
      teacher: As many of the same size; they receive no gradient.

    Returns:
      float32 `[..., pairs]`; the plain mean is the loss.

    Raises:
      TypeError: If a map is not floating point.
      ValueError: If there are not two of each or more, or batch or size differ.

    Source:
      Feng et al., "Double similarity distillation for semantic image segmentation" (TIP 2021), as
      in CIRKD's re-implementation; the authors' code was never found. Its mean over the P pixels
      is this divided by P: weight 1000 at 64 x 128 is 0.12. The category-wise half of the method
      is left out, since at its weight it comes to about 1e-6.
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
    """The mean square of every pixel's features, of length 1 over the image."""
    return _direction(jnp.mean(jnp.square(features.astype(jnp.float32)), axis=-1))


def _direction(image):
    """Of length 1 over the pixels, or all 0."""
    # The scale cancels; without it, squares of large or small numbers would not be finite.
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
    """Marks what `nfd` cannot normalize: channels that hardly vary over an image.

    Where the variance is at most `eps`, it is `eps` that `nfd` divides by. A teacher's dead channel
    then teaches nothing and only adds a constant, about 1, to the loss; a student's receives a
    gradient of the order of `1 / sqrt(eps)`. Beside `nfd` of the same arrays under `jit` this costs
    next to nothing, as both read the same variances.

    Args:
      features: `[..., H, W, C]`, any floating type.
      axes: As in `nfd`: what is normalized together, and so is dead or alive together.
      eps: As in `nfd`.
      axis_name: As in `nfd`.

    Returns:
      bool, one value for each mean that `nfd` takes: `[..., C]` for `"space"`, `[C]` for
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
    """The features around their mean, and the variance, which keeps `axes`."""
    features = features.astype(jnp.float32)
    # Counted from one of its own values, a constant channel is exactly 0 however large it is, and
    # a small variation around a large level keeps its digits. Of images, which may be spread over
    # devices, it is the largest first pixel: all devices need the same.
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
