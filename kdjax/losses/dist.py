"""DIST: correlations between the classes of a pixel, and between the pixels of a class."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.losses._arrays import by_group, moments
from kdjax.losses._checks import check_option, check_positive, check_same_shape


def dist_inter(
    student: Float[Array, "*batch H W C"],
    teacher: Float[Array, "*batch H W C"],
    *,
    temperature: float | Array = 1.0,
    eps: float = 1e-8,
) -> Float[Array, "*batch H W"]:
    """DIST's relation between classes: 1 minus the correlation of both distributions of a pixel.

    `1 - rho(p, q)`, 0 to 2, with the correlation `rho` over the channels, and the teacher's and the
    student's softmax `p` and `q` over the channels.

    Args:
      student: logits `[..., H, W, C]`, any floating type.
      teacher: logits of the same shape; they receive no gradient.
      temperature: softens both distributions. A setting: it receives no gradient.
      eps: keeps a uniform distribution finite. Its correlation with anything is 0.

    Returns:
      float32 `[..., H, W]`; the plain mean is the loss.

    Source:
      Huang et al., "Knowledge distillation from a stronger teacher" (NeurIPS 2022), the authors'
      code for segmentation: temperature 1, weight 1 on this and on `dist_intra`, and 0.4 of both
      on the auxiliary scores. Ignored pixels take part. The loss is not multiplied by the square of
      the temperature.
    """
    student, teacher = _distributions(student, teacher, temperature)
    return _decorrelation(student, teacher, (-1,), eps)[..., 0]


def dist_intra(
    student: Float[Array, "*batch H W C"],
    teacher: Float[Array, "*batch H W C"],
    *,
    temperature: float | Array = 1.0,
    classes: Literal["all", "present"] = "all",
    eps: float = 1e-8,
    group: int = 0,
    axis_name: str | tuple[str, ...] | None = None,
) -> Float[Array, "*groups C"]:
    """DIST's relation within classes: 1 minus the correlation of a class over the batch's pixels.

    `1 - rho(p_c, q_c)` over the pixels of all images, for every class.

    Args:
      student: logits `[..., H, W, C]`, any floating type.
      teacher: logits of the same shape; they receive no gradient.
      temperature: as in `dist_inter`.
      classes: `"all"`, as the authors' code, or `"present"` for classes that have the teacher's
        highest score at some pixel. Under `"all"`, a class that neither network predicts adds 1 and
        hardly any gradient.
      eps: keeps such a class finite.
      group: the number of consecutive images that are taken together; 0 for all. The authors' code
        takes the 2 images of a device.
      axis_name: inside `shard_map`, the mesh axes over which the images of the batch are split.

    Returns:
      float32 `[C]`, or `[..., B / group, C]`; the plain mean is the loss.

    Source:
      As `dist_inter`. Half of `nfd` over `"batch_space"`, of the distributions.
    """
    check_option("classes", classes, ("all", "present"))
    student, teacher = _distributions(student, teacher, temperature)
    over = tuple(range(student.ndim - 1))
    if group:
        student, teacher = (by_group(x, group, axis_name) for x in (student, teacher))
        over = (-4, -3, -2)
    values = jnp.squeeze(_decorrelation(student, teacher, over, eps, axis_name), over)
    if classes == "all":
        return values
    seen = jnp.any(teacher == jnp.max(teacher, -1, keepdims=True), over)
    if axis_name is not None:
        seen = jax.lax.pmax(seen.astype(jnp.int32), axis_name) > 0
    return jnp.where(seen, values, 0.0) / jnp.mean(seen, -1, keepdims=True)


def _distributions(student, teacher, temperature):
    check_same_shape(student, teacher)
    check_positive("temperature", temperature)
    teacher, temperature = jax.lax.stop_gradient((teacher, temperature))
    return (jax.nn.softmax(x.astype(jnp.float32) / temperature) for x in (student, teacher))


def _decorrelation(student, teacher, axes, eps, axis_name=None):
    """Returns 1 minus the correlation over the axes, which stay."""
    check_positive("eps", eps)
    (student, variance_s), (teacher, variance_t) = (
        moments(x, axes, axis_name) for x in (student, teacher)
    )
    product = jnp.mean(student * teacher, axes, keepdims=True)
    count = math.prod(student.shape[axis] for axis in axes)
    if axis_name is not None:
        product, count = jax.lax.pmean(product, axis_name), count * jax.lax.axis_size(axis_name)
    # One root for both: the root of each alone has no derivative at 0.
    return 1.0 - product / jnp.sqrt(variance_s * variance_t + (eps / count) ** 2)
