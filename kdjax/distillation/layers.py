"""Layers that distillation terms learn, as functions of their parameters."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

Params = dict[str, Float[Array, "..."]]
_EPSILON = 1e-5


def init_adapter(
    key: PRNGKeyArray, channels: int, wanted: int, *, bias: bool = False, norm: bool = False
) -> Params:
    """Draws the parameters of an adapter, a 1x1 convolution from student to teacher channels.

    The variance of the kernel is 1 / channels, so that the scale of the student's map is kept. The
    default has no bias, as in CIRKD and TorchDistiller.

    Args:
      key: random key of the kernel.
      channels: channels of the student's map.
      wanted: channels of the teacher's map.
      bias: True if the convolution has a bias.
      norm: True if a batch norm follows. It uses the statistics of each batch and keeps none,
        because an adapter runs only in training.
    """
    initialize = jax.nn.initializers.lecun_normal()
    params = {"kernel": initialize(key, (channels, wanted), jnp.float32)}
    if bias:
        params["bias"] = jnp.zeros(wanted)
    if norm:
        params |= {"scale": jnp.ones(wanted), "shift": jnp.zeros(wanted)}
    return params


def adapt(params: Params, x: Float[Array, "B h w S"]) -> Float[Array, "B h w T"]:
    """Applies an adapter to a map, in the map's type."""
    y = x @ params["kernel"].astype(x.dtype)
    if "bias" in params:
        y = y + params["bias"].astype(x.dtype)
    return batch_norm(params, y) if "scale" in params else y


def batch_norm(params: Params, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
    """Normalizes a map by the statistics of the batch, and applies "scale" and "shift"."""
    full = x.astype(jnp.float32)
    centered = full - full.mean((0, 1, 2))
    deviation = jnp.sqrt(jnp.square(centered).mean((0, 1, 2)) + _EPSILON)
    return (centered / deviation * params["scale"] + params["shift"]).astype(x.dtype)


def init_convolution(key: PRNGKeyArray, size: int, inputs: int, outputs: int) -> Params:
    """Draws a convolution as PyTorch does: uniform, with variance 1 / (3 inputs size^2)."""
    bound = (size * size * inputs) ** -0.5
    shapes = {"kernel": (size, size, inputs, outputs), "bias": (outputs,)}
    return {
        name: jax.random.uniform(part, shape, minval=-bound, maxval=bound)
        for part, (name, shape) in zip(jax.random.split(key), shapes.items(), strict=True)
    }


def convolve(
    params: Params, x: Float[Array, "B h w C"], *, stride: int = 1, padding: Any = "SAME"
) -> Float[Array, "B i j D"]:
    """Convolves a map in its type. `padding` is that of `jax.lax.conv_general_dilated`."""
    y = jax.lax.conv_general_dilated(
        x,
        params["kernel"].astype(x.dtype),
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y + params["bias"].astype(x.dtype) if "bias" in params else y


def to_length_one(
    x: Float[Array, "*shape"], axes: int | tuple[int, ...] = -1
) -> Float[Array, "*shape"]:
    """Scales vectors to length 1, in float32. Vectors of zeros stay zero."""
    x = x.astype(jnp.float32)
    square = jnp.sum(jnp.square(x), axes, keepdims=True)
    return x * jax.lax.rsqrt(jnp.where(square > 1e-16, square, 1.0))
