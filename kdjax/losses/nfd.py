"""NFD: normalized feature distillation."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.losses._arrays import by_group, moments
from kdjax.losses._checks import check_map, check_option, check_positive, check_same_shape


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
      student: features `[..., H, W, C]`, any floating type, after a 1x1 convolution if the
        networks' channels differ. Its bias has no effect under `"space"` and `"batch_space"`.
      teacher: features of the same shape; they receive no gradient.
      axes: the axes that are normalized together.
      eps: added to the variance; keeps a constant channel finite.
      group: for `"batch_space"`, the number of consecutive images that are normalized together; 0
        for all. Code that runs one process per device normalizes the images of each device.
      axis_name: for `"batch_space"` inside `shard_map`, the mesh axes over which the images of the
        batch are split. Without a name, every device normalizes its own images.

    Returns:
      float32 `[..., C]`, the mean over the pixels of each channel, for all `axes`; the plain mean
      is the loss.

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
    `nfd` of the same arrays, this function adds almost no work: both read the same variances. The
    options are those of `nfd`.

    Returns:
      bool, one value for each variance in `nfd`: `[..., C]` for `"space"`, `[C]` for
      `"batch_space"`, `[..., H, W]` for `"channel"`, `[...]` for `"all"`.
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
    centered, variance = moments(features, axes, axis_name)
    return centered * jax.lax.rsqrt(variance + eps)
