"""Depthwise convolution as a sum of shifted products, with a handwritten gradient.

On the CPU, XLA's grouped convolution takes more than ten times as long.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def depthwise_convolution(
    padded: Float[Array, "B H W C"], kernel: Float[Array, "n n C"], stride: int, dilation: int
) -> Float[Array, "B h w C"]:
    """Convolves each channel by itself: the sum over a window of shifted maps times the kernel.

    XLA fuses the sum. JAX's own derivative computes a separate sum over all pixels for each place
    of the window, which takes four to ten times as long on the CPU. There is no forward-mode
    derivative.

    Args:
      padded: the map, float32, with the padding for the window.
      kernel: of every channel, float32.
      stride: from one window to the next.
      dilation: between the places of a window.
    """
    # Inside `shard_map`, every device has its own images, and this sums the kernel's gradient.
    if unlike := _varying(padded) - _varying(kernel):
        kernel = jax.lax.pcast(kernel, tuple(unlike), to="varying")
    return _convolution(padded, kernel, stride, dilation)


def _varying(x: Array) -> frozenset[str]:
    """The mesh axes of a `shard_map` along which the devices hold different values."""
    return jax.typeof(x).manual_axis_type.varying


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolution(padded: Array, kernel: Array, stride: int, dilation: int) -> Array:
    span = dilation * (kernel.shape[0] - 1) + 1
    height, width = (length - span for length in padded.shape[1:3])
    total = jnp.float32(0.0)
    for row, column in itertools.product(range(kernel.shape[0]), repeat=2):
        top, left = row * dilation, column * dilation
        shifted = padded[:, top : top + height + 1 : stride, left : left + width + 1 : stride]
        total = total + shifted * kernel[row, column]
    return jnp.asarray(total)


def _forward(padded: Array, kernel: Array, stride: int, dilation: int) -> Any:
    return _convolution(padded, kernel, stride, dilation), (padded, kernel)


def _backward(
    stride: int, dilation: int, given: tuple[Array, Array], slope: Float[Array, "B h w C"]
) -> tuple[Array, Array]:
    padded, kernel = given
    size = kernel.shape[0]
    span = dilation * (size - 1) + 1

    # The gradient by the map: the same sum over the slope, spread by zeros, with a flipped kernel.
    ends = [
        (span - 1, length - (short - 1) * stride - 1, stride - 1)
        for length, short in zip(padded.shape[1:3], slope.shape[1:3], strict=True)
    ]
    spread = jax.lax.pad(slope, jnp.float32(0.0), ((0, 0, 0), *ends, (0, 0, 0)))
    by_map: Any = _convolution(spread, kernel[::-1, ::-1], 1, dilation)

    by_kernel = jax.lax.platform_dependent(
        padded,
        slope,
        cpu=functools.partial(_by_kernel_in_rows, size, stride, dilation),
        # A loop would leave an accelerator idle.
        default=functools.partial(_by_kernel_at_once, size, stride, dilation),
    )
    return by_map, by_kernel


def _by_kernel_at_once(
    size: int, stride: int, dilation: int, padded: Array, slope: Array
) -> Float[Array, "n n C"]:
    height, width = ((length - 1) * stride + 1 for length in slope.shape[1:3])
    sums = [
        (padded[:, top : top + height : stride, left : left + width : stride] * slope).sum(
            (0, 1, 2)
        )
        for top, left in itertools.product(range(0, size * dilation, dilation), repeat=2)
    ]
    return jnp.stack(sums).reshape(size, size, -1)


def _by_kernel_in_rows(
    size: int, stride: int, dilation: int, padded: Array, slope: Array
) -> Float[Array, "n n C"]:
    """Adds up row by row, separately for each column of pixels, and sums the columns at the end."""
    span, width = dilation * (size - 1) + 1, (slope.shape[2] - 1) * stride + 1
    lefts = range(0, size * dilation, dilation)

    def add_row(sums: tuple[Array, ...], row: Array) -> tuple[tuple[Array, ...], None]:
        window = jax.lax.dynamic_slice_in_dim(padded, row * stride, span, 1)[:, ::dilation]
        across = jax.lax.dynamic_slice_in_dim(slope, row, 1, 1)
        return tuple(
            total + window[:, :, left : left + width : stride] * across
            for left, total in zip(lefts, sums, strict=True)
        ), None

    zeros = jnp.zeros_like(jnp.repeat(slope[:, :1], size, 1))  # sharded like slope
    sums, _ = jax.lax.scan(add_row, (zeros,) * size, jnp.arange(slope.shape[1]))
    # Keeps XLA from moving the sum into the loop.
    columns = jax.lax.optimization_barrier(sums)
    return jnp.stack([column.sum((0, 2)) for column in columns], 1)


_convolution.defvjp(_forward, _backward)
