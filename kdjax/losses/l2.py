"""L2: squared distance of features, as in FitNets."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.losses._checks import check_same_shape


def l2(
    student: Float[Array, "*batch H W C"], teacher: Float[Array, "*batch H W C"]
) -> Float[Array, "*batch H W"]:
    """Plain squared distance of features: `mean_c (student_c - teacher_c)^2` at every pixel.

    The loss grows with the square of the teacher's scale, so that a weight that suits one teacher
    may not suit another. `nfd` and `pkd` remove the scale first.

    Args:
      student: features `[..., H, W, C]`, any floating type, after a 1x1 convolution. The authors
        learn one even if the networks' channels agree.
      teacher: features of the same shape; they receive no gradient.

    Returns:
      float32 `[..., H, W]`; the plain mean is the loss.

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
