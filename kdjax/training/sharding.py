"""Where arrays live: one mesh over all devices, batches split over it, the rest on every device."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from kdjax.errors import UserError


class Placement:
    """A mesh with one axis, `data`, over `devices` (all, by default), and arrays' places on it.

    The axis type is Auto on purpose: under Explicit axes, confusion counts, class statistics and
    dropout masks of a batch-sharded array are sharding errors.
    """

    def __init__(self, devices: Sequence[Any] | None = None) -> None:
        # A process's devices stand together, so that its rows of a batch do too. The order means
        # nothing to collectives over one axis of all devices.
        ordered = sorted(
            devices or jax.devices(), key=lambda device: (device.process_index, device.id)
        )
        self.mesh = Mesh(np.array(ordered), ("data",), (AxisType.Auto,))
        self.replicated = NamedSharding(self.mesh, PartitionSpec())
        self.batch = NamedSharding(self.mesh, PartitionSpec("data"))

    def check_batch_size(self, key: str, size: int) -> None:
        """Raises a UserError where a batch cannot be split evenly over the devices."""
        if size % self.mesh.size:
            raise UserError(
                f"config.{key} is {size}; it must be a multiple of the {self.mesh.size} devices"
            )

    def put_batch(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Places a batch on the devices, of which this process gives its rows.

        Args:
          batch: arrays or trees of arrays `[B / n, ...]`; the rows of the n processes, one after
            the other, are the batch.
        """
        return jax.tree.map(
            lambda value: jax.make_array_from_process_local_data(self.batch, value), dict(batch)
        )

    def replicate(self, tree: Any) -> Any:
        """Places arrays, the same on every process, on every device."""
        return jax.tree.map(
            lambda value: jax.make_array_from_process_local_data(
                self.replicated, value, np.shape(value)
            ),
            tree,
        )
