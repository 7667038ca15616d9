"""Weights that change over a run, as functions of its progress from 0 to 1."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

Schedule = Callable[[Float[Array, ""]], Float[Array, ""]]


def _constant(start: float, end: float) -> Schedule:
    del end
    return lambda progress: jnp.full_like(progress, start)


def _linear(start: float, end: float) -> Schedule:
    return lambda progress: start + (end - start) * progress


def _cosine(start: float, end: float) -> Schedule:
    return lambda progress: end + (start - end) * (1 + jnp.cos(jnp.pi * progress)) / 2


SCHEDULES: dict[str, Callable[[float, float], Schedule]] = {
    "constant": _constant,
    "linear": _linear,
    "cosine": _cosine,
}
