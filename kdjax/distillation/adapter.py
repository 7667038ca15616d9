"""The adapter: a 1x1 convolution that takes the student's map to the teacher's channels."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

Params = dict[str, Float[Array, "..."]]
_EPSILON = 1e-5


def init(
    key: PRNGKeyArray, channels: int, wanted: int, *, bias: bool = False, norm: bool = False
) -> Params:
    """Draws an adapter.

    Without bias by default, as CIRKD and TorchDistiller; drawn with variance 1 / channels, so that
    the scale of the student's map is kept.

    Args:
      key: for the kernel.
      channels: of the student's map.
      wanted: of the teacher's.
      bias: whether it has a bias.
      norm: whether a batch norm follows, with the statistics of the batch: an adapter is used in
        training alone, and keeps none.
    """
    initialize = jax.nn.initializers.lecun_normal()
    params = {"kernel": initialize(key, (channels, wanted), jnp.float32)}
    if bias:
        params["bias"] = jnp.zeros(wanted)
    if norm:
        params |= {"scale": jnp.ones(wanted), "shift": jnp.zeros(wanted)}
    return params


def apply(params: Params, x: Float[Array, "B h w S"]) -> Float[Array, "B h w T"]:
    """Takes a map to the teacher's channels, in its own type."""
    y = x @ params["kernel"].astype(x.dtype)
    if "bias" in params:
        y = y + params["bias"].astype(x.dtype)
    if "scale" in params:
        full = y.astype(jnp.float32)
        centred = full - full.mean((0, 1, 2))
        deviation = jnp.sqrt(jnp.square(centred).mean((0, 1, 2)) + _EPSILON)
        y = (centred / deviation * params["scale"] + params["shift"]).astype(x.dtype)
    return y
