"""Rewrites networks in operations that runtimes other than XLA know."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import export
from jax.core import Tracer
from jax.extend import core
from jaxtyping import Array

from kdjax.models import Network
from kdjax.models.adapters import NNXNetwork
from kdjax.models.layers import Conv


def plain_convolutions(network: Network) -> Network:
    """Returns the network with every `Conv` of kdjax as a single convolution."""
    if not isinstance(network, NNXNetwork):
        return network

    def change(module: nnx.Module) -> None:
        for _, part in nnx.iter_modules(module):
            if isinstance(part, Conv):
                part.plain = True

    return network.changed(change)


# Operations that call another program, and the parameter that holds the program.
_CALLS = {"jit": "jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}


def plain(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Returns the function without inner calls, in operations that converters handle correctly.

    Values that do not depend on the input, such as the weights of a resize, become constants.
    """

    def evaluated(images: Any) -> Any:
        traced = jax.make_jaxpr(function)(jax.ShapeDtypeStruct(images.shape, images.dtype))
        (result,) = _evaluated(traced.jaxpr, traced.consts, [images])
        return result

    return evaluated


def _evaluated(program: core.Jaxpr, constants: list[Any], inputs: list[Any]) -> list[Any]:
    """Runs a program and returns its results."""
    known = (*program.constvars, *program.invars)
    values: dict[Any, Any] = dict(zip(known, (*constants, *inputs), strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for equation in program.eqns:
        given = [read(atom) for atom in equation.invars]
        name = equation.primitive.name
        if name in _CALLS:
            inner = equation.params[_CALLS[name]]
            results = _evaluated(inner.jaxpr, inner.consts, given)
        elif _is_constant(equation, given):
            with jax.ensure_compile_time_eval():
                results = _bound(equation, given)
        elif name in _RULES:
            results = [_RULES[name](*given, **equation.params)]
        else:
            results = _bound(equation, given)
        values.update(zip(equation.outvars, results, strict=True))
    return [
        atom.val if isinstance(atom, core.Literal) else values[atom] for atom in program.outvars
    ]


def _bound(equation: core.JaxprEqn, given: list[Any]) -> list[Any]:
    results = equation.primitive.bind(*given, **equation.params)
    return list(results) if equation.primitive.multiple_results else [results]


def _is_constant(equation: core.JaxprEqn, given: list[Any]) -> bool:
    """Returns True if nothing in an equation depends on the input or its size."""
    sizes = [size for variable in equation.outvars for size in getattr(variable.aval, "shape", ())]
    return not any(
        isinstance(value, Tracer) or export.is_symbolic_dim(value)
        for value in (*given, *sizes, *equation.params.values())
    )


def _dot_general(x: Any, y: Any, **parameters: Any) -> Array:
    """Moves the constant of a product to the right.

    TensorFlow Lite takes a constant on the right for the weights of a layer. With a constant on the
    left, as in a resize, its int8 kernels for the CPU (XNNPACK) return wrong numbers.
    """
    if isinstance(x, Tracer) or not isinstance(y, Tracer):
        return jax.lax.dot_general_p.bind(x, y, **parameters)
    ((contracted_x, contracted_y), (batch_x, batch_y)) = parameters["dimension_numbers"]
    swapped = {"dimension_numbers": ((contracted_y, contracted_x), (batch_y, batch_x))}
    product = jax.lax.dot_general_p.bind(y, x, **(parameters | swapped))
    batch, others = len(batch_x), y.ndim - len(contracted_y) - len(batch_y)
    order = (*range(batch), *range(batch + others, product.ndim), *range(batch, batch + others))
    return jax.lax.transpose(product, order)


def _pad(x: Any, value: Any, *, padding_config: Any) -> Array:
    """Pads by concatenation if an axis is open, because jax2onnx 0.17.1 cannot write that pad."""
    if not any(map(export.is_symbolic_dim, x.shape)) or any(
        low < 0 or high < 0 or between for low, high, between in padding_config
    ):
        return jax.lax.pad_p.bind(x, value, padding_config=padding_config)
    for axis, (low, high, _) in enumerate(padding_config):
        before, after = (
            [jnp.broadcast_to(value, (*x.shape[:axis], count, *x.shape[axis + 1 :]))]
            if count
            else []
            for count in (low, high)
        )
        x = jax.lax.concatenate([*before, x, *after], axis)
    return x


_RULES: dict[str, Callable[..., Array]] = {"dot_general": _dot_general, "pad": _pad}
