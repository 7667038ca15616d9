"""Attention transfer: where the features of an image are large."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.losses._arrays import length
from kdjax.losses._checks import check_same_size


def attention_transfer(
    student: Float[Array, "*batch H W D"], teacher: Float[Array, "*batch H W E"]
) -> Float[Array, "*batch"]:
    """Attention transfer: squared distance of two maps' attention.

    `sum_i (a^S_i - a^T_i)^2 = 2 (1 - cos(a^S, a^T))`, 0 to 2. A map's attention is
    `a_i = e_i / |e|`, with `e_i` the mean square of the features of pixel `i`.

    Args:
      student: features `[..., H, W, D]`, any floating type.
      teacher: features `[..., H, W, E]` of the same size; they receive no gradient.

    Returns:
      float32 `[...]`, one value per image; the plain mean is the loss.

    Source:
      Zagoruyko, Komodakis, "Paying more attention to attention" (ICLR 2017). CIRKD, mmrazor, and
      RepDistiller take the mean over the P pixels, and this function takes the sum. A weight `w`
      there is `w / P` here: CIRKD's 10000 at 64 x 128 pixels is 1.2.
    """
    check_same_size(student, teacher)
    student, teacher = (attention(x) for x in (student, jax.lax.stop_gradient(teacher)))
    return jnp.sum(jnp.square(student - teacher), axis=(-2, -1))


def attention(features):
    """Returns the mean square of every pixel's features, scaled to length 1 over the image."""
    return direction(jnp.mean(jnp.square(features.astype(jnp.float32)), axis=-1))


def direction(image):
    """Scales an image to length 1 over its pixels; an image of zeros stays zero."""
    # The largest value cancels. Without it, squares of large numbers would not be finite.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(image), (-2, -1), keepdims=True))
    image = image / jnp.where(largest == 0, 1.0, largest)
    return image / length(image, (-2, -1))
