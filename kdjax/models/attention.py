"""The layers that the transformers share: linear maps, layer norm, drop path, attention."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models.layers import normal


def linear_normal(key: Array, shape: Sequence[int], dtype: jnp.dtype) -> Array:
    """Initialises a kernel with standard deviation 0.02, as mmsegmentation's transformers."""
    return normal(key, shape, 0.02).astype(dtype)


class Linear(nnx.Linear):
    """A linear map over the channels."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        bias: bool = True,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            in_channels, channels, use_bias=bias, kernel_init=linear_normal, dtype=dtype, rngs=rngs
        )


class LayerNorm(nnx.LayerNorm):
    """Layer norm over the channels.

    The variance is that of the centred values: Flax's default, the mean of squares less the square
    of the mean, loses digits where a channel's mean is large.
    """

    def __init__(self, channels: int, *, epsilon: float, dtype: jnp.dtype, rngs: nnx.Rngs):
        super().__init__(channels, epsilon=epsilon, dtype=dtype, use_fast_variance=False, rngs=rngs)


class DropPath(nnx.Dropout):
    """Drops a residual branch [B, H, W, C] for whole images (Huang et al., ECCV 2016)."""

    def __init__(self, rate: float):
        super().__init__(rate, broadcast_dims=(1, 2, 3))


def gelu(x: Array) -> Array:
    """The exact GELU, by the error function as in PyTorch; JAX's default approximates it."""
    return nnx.gelu(x, approximate=False)


def split_heads(x: Float[Array, "... T C"], heads: int) -> Float[Array, "... T N D"]:
    """Splits the channels into `heads` groups."""
    return x.reshape(*x.shape[:-1], heads, -1)


def attend(
    query: Float[Array, "... T N D"],
    key: Float[Array, "... S N D"],
    value: Float[Array, "... S N D"],
    bias: Float[Array, "... N T S"] | None = None,
) -> Float[Array, "... T C"]:
    """Multi-head scaled dot-product attention; the softmax is taken in float32.

    Args:
      query: queries of the N heads.
      key: keys.
      value: values.
      bias: what is added to the scores before the softmax.

    Returns:
      The attended values with the heads' channels joined, C = N * D.
    """
    scale = query.shape[-1] ** -0.5
    scores = jnp.einsum(
        "...tnd,...snd->...nts", query * scale, key, preferred_element_type=jnp.float32
    )
    if bias is not None:
        scores = scores + bias
    weights = jax.nn.softmax(scores).astype(value.dtype)
    attended = jnp.einsum("...nts,...snd->...tnd", weights, value)
    return attended.reshape(*attended.shape[:-2], -1)


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Returns the rates of every stage's blocks, rising from 0 to `rate` over all blocks."""
    total = sum(depths)
    rates = iter([rate * i / (total - 1) for i in range(total)])
    return [[next(rates) for _ in range(depth)] for depth in depths]
