"""StableHLO: one file that any JAX loads, for CPU, CUDA and TPU, without a network's code."""

import pathlib

import jax
import jax.numpy as jnp
from jax import export

from kdjax.deployment.labelling import Label, Size

PLATFORMS = ("cpu", "cuda", "tpu")


def write(label: Label, size: Size, path: pathlib.Path) -> None:
    """Writes the serialised function."""
    images = jax.ShapeDtypeStruct(export.symbolic_shape(size.symbolic), jnp.uint8)
    path.write_bytes(export.export(jax.jit(label), platforms=PLATFORMS)(images).serialize())


def read(path: pathlib.Path) -> Label:
    """Loads it."""
    return jax.jit(export.deserialize(bytearray(path.read_bytes())).call)
