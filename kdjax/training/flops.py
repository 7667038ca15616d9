"""Counts what a program multiplies: its convolutions and matrix products, in every loop's rounds.

XLA's own count takes the body of a loop once, and adds element-wise work, which does not run on the
units that a chip's peak is about.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval


def count(function: Callable[..., Any], *arguments: Any) -> int:
    """Multiplications and additions of `function` on arguments of these shapes.

    Results that nothing needs do not count, as XLA leaves them out. A `while` loop of unknown
    length counts once.

    Args:
      function: any that JAX can trace.
      *arguments: arrays or `jax.ShapeDtypeStruct`, in any pytrees.
    """
    return count_program(jax.make_jaxpr(function)(*arguments))


def count_program(closed: core.ClosedJaxpr) -> int:
    """The same of a program that has been traced."""
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.out_avals))
    return _count(jaxpr)


def _count(jaxpr: core.Jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: core.JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _dot(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    inner = [_count(jaxpr) for jaxpr in _inside(params)]
    if name == "cond":
        return max(inner)
    return params.get("length", 1) * sum(inner) if name == "scan" else sum(inner)


def _inside(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    """The programs that an equation runs."""
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, core.ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, core.Jaxpr):
                yield part


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _dot(equation: core.JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, out = _shape(equation.invars[0]), _shape(equation.outvars[0])
    return 2 * math.prod(out) * math.prod(left[i] for i in contracted)


def _convolution(equation: core.JaxprEqn) -> int:
    """Without the products with padding, and with the zeros between dilated rows."""
    params = equation.params
    numbers = params["dimension_numbers"]
    image, kernel = map(_shape, equation.invars)
    out = _shape(equation.outvars[0])
    pairs = math.prod(
        _pairs(image[i], kernel[k], out[o], *window)
        for i, k, o, *window in zip(
            numbers.lhs_spec[2:],
            numbers.rhs_spec[2:],
            numbers.out_spec[2:],
            params["window_strides"],
            params["padding"],
            params["lhs_dilation"],
            params["rhs_dilation"],
            strict=True,
        )
    )
    out_features, in_features = (kernel[i] for i in numbers.rhs_spec[:2])
    batch = image[numbers.lhs_spec[0]] // params["batch_group_count"]
    return 2 * batch * out_features * in_features * pairs


def _pairs(
    image: int,
    kernel: int,
    out: int,
    stride: int,
    padding: tuple[int, int],
    image_dilation: int,
    kernel_dilation: int,
) -> int:
    """Pairs of an output and a kernel position, along one axis, that meet a pixel of the image."""
    place = np.arange(out)[:, None] * stride + np.arange(kernel) * kernel_dilation - padding[0]
    inside = (place >= 0) & (place <= (image - 1) * image_dilation)
    return int((inside & (place % image_dilation == 0)).sum())
