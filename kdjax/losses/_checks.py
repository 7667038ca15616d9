"""Checks of the arguments, when a loss is traced."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.core import Tracer


def shape_of(array: jax.Array) -> str:
    """Returns a shape as the documentation writes it, `[2, 64, 128, 19]`."""
    return str(list(array.shape))


def dtype_of(name: str, array: jax.Array) -> jnp.dtype:
    """Returns the dtype of an array of JAX or NumPy.

    Raises:
      TypeError: for a list, or an array of another library.
    """
    try:
        return jnp.dtype(array.dtype)
    except (AttributeError, TypeError):
        kind = f"{type(array).__module__}.{type(array).__qualname__}"
        raise TypeError(f"{name} is a {kind}; give a JAX or NumPy array") from None


def check_map(name: str, array: jax.Array) -> None:
    """Requires a floating-point array `[..., H, W, C]`."""
    if not jnp.issubdtype(dtype_of(name, array), jnp.floating):
        raise TypeError(
            f"{name} must be floating point, got {array.dtype} {shape_of(array)}; "
            "a loss takes scores or features, not class indices"
        )
    if array.ndim < 3:
        raise ValueError(f"{name} must be [..., H, W, C], got {shape_of(array)}")
    if math.prod(array.shape[-3:]) == 0:
        raise ValueError(f"{name} must have at least one pixel and channel, got {shape_of(array)}")


def check_same_size(student: jax.Array, teacher: jax.Array) -> None:
    """Requires two maps of the same batch and size; their channels may differ."""
    check_map("student", student)
    check_map("teacher", teacher)
    if student.shape[:-1] != teacher.shape[:-1]:
        raise ValueError(
            "student and teacher must have the same batch and size, got student "
            f"{shape_of(student)} and teacher {shape_of(teacher)}; resize one of the two first"
        )


def check_same_shape(student: jax.Array, teacher: jax.Array) -> None:
    """Requires two maps that can be compared channel by channel."""
    check_same_size(student, teacher)
    if student.shape[-1] != teacher.shape[-1]:
        raise ValueError(
            "student and teacher must have the same number of channels, got student "
            f"{shape_of(student)} and teacher {shape_of(teacher)}; add a 1x1 convolution to the "
            f"student, {student.shape[-1]} to {teacher.shape[-1]} channels "
            "(the adapter of a distillation term does that)"
        )


def check_labels(labels: jax.Array, array: jax.Array, owner: str) -> None:
    """Requires integer labels of the shape of a map without its channels."""
    check_label_dtype(labels)
    if labels.shape == array.shape[:-1]:
        return
    message = (
        f"labels must be {list(array.shape[:-1])}, one per pixel of the {owner}, "
        f"got {shape_of(labels)}"
    )
    if labels.shape == (*array.shape[:-3], *array.shape[-2:]):
        message += f"; the {owner} {shape_of(array)} seem to have their channels first, not last"
    raise ValueError(message)


def check_shape(name: str, array: jax.Array, *allowed: tuple[int, ...]) -> None:
    """Requires one of some shapes."""
    if array.shape not in allowed:
        right = " or ".join(str(list(shape)) for shape in allowed)
        raise ValueError(f"{name} must be {right}, got {shape_of(array)}")


def check_label_dtype(labels: jax.Array) -> None:
    """Requires integer labels."""
    if not jnp.issubdtype(dtype_of("labels", labels), jnp.integer):
        raise TypeError(
            f"labels must be integer class indices, got {labels.dtype} {shape_of(labels)}"
        )


def check_option(name: str, value: str, valid: Sequence[str]) -> None:
    """Requires one of the named options."""
    if value not in valid:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, valid))}, got {value!r}")


def check_positive(name: str, value: float | jax.Array, *, or_zero: bool = False) -> None:
    """Requires a finite number above zero. Traced values, as of a schedule, are not checked."""
    if not isinstance(value, Tracer) and not (0 < value < math.inf or (or_zero and value == 0)):
        kind = "zero or a positive number" if or_zero else "a positive number"
        raise ValueError(f"{name} must be {kind}, got {value}")
