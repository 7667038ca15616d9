"""Compares gradients on one device with those of a batch that is split over several."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array


def check_gradient(
    loss: Callable[[Array, Array], Array], images: Array, kernel: Array, kind: str
) -> None:
    """Checks the gradient of a loss by images and kernel, with the images over eight devices.

    Args:
      loss: a function of both.
      images: eight of them.
      kernel: every device has all of it.
      kind: an axis type of a mesh. Manual is `shard_map`.
    """
    gradient = jax.grad(loss, argnums=(0, 1))
    expected = jax.jit(gradient)(images, kernel)
    shared = AxisType.Auto if kind == "Manual" else AxisType[kind]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(shared,))
    specs = PartitionSpec("data"), PartitionSpec()
    if kind == "Manual":
        gradient = jax.shard_map(gradient, mesh=mesh, in_specs=specs, out_specs=specs)
    given = [
        jax.device_put(x, NamedSharding(mesh, s))
        for x, s in zip((images, kernel), specs, strict=True)
    ]
    for found, right in zip(jax.jit(gradient)(*given), expected, strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-5, atol=2e-5)
