"""Where arrays live: one mesh over all devices, batches split over it, the rest on every device."""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from kdjax.errors import UserError


class Placement:
    """A mesh with one axis, `data`, over all devices, and the placement of arrays on it.

    The axis type is Auto on purpose: under Explicit axes, confusion counts, class statistics and
    dropout masks of a batch-sharded array are sharding errors.
    """

    def __init__(self) -> None:
        self.mesh: Mesh = jax.make_mesh((jax.device_count(),), ("data",), (AxisType.Auto,))
        self.replicated = NamedSharding(self.mesh, PartitionSpec())
        self.batch = NamedSharding(self.mesh, PartitionSpec("data"))

    def check_batch_size(self, key: str, size: int) -> None:
        """Raises a UserError where a batch cannot be split evenly over the devices."""
        if size % self.mesh.size:
            raise UserError(
                f"config.{key} is {size}; it must be a multiple of the {self.mesh.size} devices"
            )

    def put_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Places the arrays of this process's share of a batch [B, ...] on its devices."""
        return {
            key: jax.make_array_from_process_local_data(self.batch, value)
            for key, value in batch.items()
        }
