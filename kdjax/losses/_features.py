"""Imitation of the teacher's features, value by value."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.losses._arrays import check_map, check_option, check_positive, check_same_shape


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
      axis_name: Inside `shard_map`, the mesh axes over which the images of the batch are spread,
        for `"batch_space"`; without it every device normalizes its own. Under `jit` alone the
        batch is the whole batch.

    Returns:
      float32 `[..., C]`, the mean over the pixels of each channel whichever `axes` is chosen;
      the plain mean is the loss.

    Raises:
      TypeError: If an input is not floating point.
      ValueError: If the shapes differ, `axes` is unknown, `eps` is not positive, or an axis is
        named where each image is normalized by itself.

    Source:
      Liu, Yang, Chen, "Normalized feature distillation for semantic segmentation" (2022). The
      abstract asks for normalized features and a plain distance; axes, variance, eps and the
      squared mean are our reading. No code was published. Third-party versions take the
      unbiased variance without eps (NaN on constant channels) and the unsquared norm of the
      whole batch. PKD in mmrazor is half of `"batch_space"` up to the unbiased variance.
    """
    check_same_shape(student, teacher)
    check_positive("eps", eps)
    over = _over(axes, student.ndim, axis_name)
    student, teacher = (
        _normalize(features, over, eps, axis_name)
        for features in (student, jax.lax.stop_gradient(teacher))
    )
    difference = student - teacher
    return jnp.mean(jnp.square(difference), axis=(-3, -2))


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
    _, variance = _moments(jax.lax.stop_gradient(features), over, axis_name)
    return jnp.squeeze(variance, over) <= eps


def _over(axes, ndim, axis_name):
    options = {
        "space": (-3, -2),
        "batch_space": (*range(ndim - 3), -3, -2),
        "channel": (-1,),
        "all": (-3, -2, -1),
    }
    check_option("axes", axes, tuple(options))
    if axis_name is not None and axes != "batch_space":
        raise ValueError(
            f"axis_name belongs to axes='batch_space'; {axes!r} normalizes each image by itself"
        )
    return options[axes]


def _normalize(features, axes, eps, axis_name):
    centred, variance = _moments(features, axes, axis_name)
    return centred * jax.lax.rsqrt(variance + eps)


def _moments(features, axes, axis_name):
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
