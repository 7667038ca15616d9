"""DSD: how attention changes between the maps of a network."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.losses._checks import check_same_size
from kdjax.losses.attention_transfer import attention, direction


def dsd_pairs(
    student: Sequence[Float[Array, "*batch H W _"]],
    teacher: Sequence[Float[Array, "*batch H W _"]],
) -> Float[Array, "*batch pairs"]:
    """DSD's pixel-wise similarity: how attention changes from one map of a network to another.

    `sum_i (r^S_i - r^T_i)^2 = 2 (1 - cos(r^S, r^T))`, 0 to 4, for every pair of maps, with
    `r = (b - a) / |b - a|` over the pixels. `a` and `b` are the attention of the pair's maps, as in
    `attention_transfer`.

    Args:
      student: two or more maps `[..., H, W, C]` of one size, in the order of the network. The
        authors take the auxiliary scores, the features before the classifier, and the scores.
      teacher: as many maps of the same size; they receive no gradient.

    Returns:
      float32 `[..., pairs]`; the plain mean is the loss.

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
        places = [attention(features) for features in maps]
        turns.append([direction(b - a) for a, b in itertools.combinations(places, 2)])
    apart = [jnp.square(mine - other) for mine, other in zip(*turns, strict=True)]
    return jnp.stack([jnp.sum(square, axis=(-2, -1)) for square in apart], axis=-1)
