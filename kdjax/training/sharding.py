"""Places arrays on a mesh of devices: batches, crops, and optionally weights are split over it."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from kdjax.utils import schema
from kdjax.utils.errors import UserError
from kdjax.utils.schema import Section


@dataclasses.dataclass(frozen=True)
class MeshOptions(Section):
    """`config.mesh`: devices along each axis; -1 for all that remain."""

    data: Annotated[int, schema.DEVICES] = -1  # images of a batch
    fsdp: Annotated[int, schema.DEVICES] = 1  # images, and weights and optimizer state with them
    space: Annotated[int, schema.DEVICES] = 1  # rows of each image


AXES = ("data", "fsdp", "space")
# The axes over which the images of a batch are split.
BATCH = ("data", "fsdp")
# Arrays with fewer elements stay whole on every device. They are mostly scales and biases, a
# hundredth of a network together, and would need one collective each.
MIN_SPLIT = 2048


class Placement:
    """A mesh of devices, and the shardings of arrays on it.

    - Axis `data` splits the images of a batch.
    - Axis `fsdp` splits images too, and also parameters, optimizer state, moving averages, class
      statistics, and the teacher: each large array along its largest dimension that allows it.
    - Axis `space` splits the rows of each image, for crops too large for one device.

    The axis type is Auto, because under Explicit axes, confusion counts and dropout masks of a
    sharded batch are sharding errors, and so are some losses of images with sharded rows. XLA
    derives all shardings between the inputs and the outputs of a step, and the collectives: it
    reduces batch norm's sums over all images, gathers weights before their use, and exchanges the
    rows that convolutions need from their neighbors.

    Args:
      options: the section `config.mesh`; by default all devices are on `data`.
      devices: the devices of the mesh; by default all.

    Raises:
      UserError: if the devices do not form this mesh.
    """

    def __init__(
        self, options: MeshOptions | None = None, devices: Sequence[Any] | None = None
    ) -> None:
        devices = jax.devices() if devices is None else devices
        # The devices of a process are neighbors, so that its images are neighbors in the batch.
        devices = sorted(devices, key=lambda device: (device.process_index, device.id))
        shape = _shape(options or MeshOptions(), len(devices))
        per_process = len(devices) // len({device.process_index for device in devices})
        if per_process % shape[2]:
            raise UserError(
                f"config.mesh.space is {shape[2]}; it must divide the {per_process} devices of a "
                "process, which reads whole images"
            )
        self.mesh = Mesh(np.array(devices).reshape(shape), AXES, (AxisType.Auto,) * len(AXES))
        self.replicated = NamedSharding(self.mesh, PartitionSpec())
        self._replicate = jax.jit(lambda tree: tree, out_shardings=self.replicated)

    @property
    def platform(self) -> str:
        """The platform of the devices: "cpu", "gpu", or "tpu"."""
        return self.mesh.devices.flat[0].platform

    @property
    def batch_shards(self) -> int:
        """The number of parts that the images of a batch are split into."""
        return math.prod(self.mesh.shape[axis] for axis in BATCH)

    def describe(self) -> str:
        """Returns the mesh as a line: `data 4 x fsdp 2 x space 1, 8 devices`."""
        sizes = " x ".join(f"{axis} {size}" for axis, size in self.mesh.shape.items())
        return f"{sizes}, {self.mesh.size} device{'s' if self.mesh.size > 1 else ''}"

    def check_images_at_once(self, size: int) -> None:
        """Checks that the devices can share the images of `--batch_size` evenly.

        Raises:
          UserError: if `size` is not a multiple of the devices.
        """
        if size % self.mesh.size:
            raise UserError(
                f"--batch_size is {size}; it must be a multiple of the {self.mesh.size} devices"
            )

    def check_batch_size(self, key: str, size: int, *, accumulate: int = 1) -> None:
        """Checks that the devices can share the images of a batch evenly.

        Args:
          key: the config key of the size, for messages.
          size: images in a batch.
          accumulate: number of micro-batches in a batch. The devices share each of them.

        Raises:
          UserError: if the images of a micro-batch are not a multiple of the devices.
        """
        if size % (accumulate * self.batch_shards):
            times = f", times {accumulate} (config.optimizer.accumulate)" if accumulate > 1 else ""
            raise UserError(
                f"config.{key} is {size}; it must be a multiple of the {self.batch_shards} devices "
                f"along config.mesh.data and config.mesh.fsdp{times}"
            )

    def batch_shardings(self, batch: PyTree) -> PyTree[NamedSharding]:
        """Returns the shardings of a batch; arrays [B, H, W, ...] are also split by rows."""
        return jax.tree.map(lambda leaf: self._of_batch(leaf.shape), batch)

    def state_shardings(self, tree: PyTree) -> PyTree[NamedSharding]:
        """Returns the shardings of a state, made of arrays or of `jax.ShapeDtypeStruct`."""
        return jax.tree.map(lambda leaf: self._of_state(leaf.shape), tree)

    def put_batch(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Places this process's rows of a batch on the devices.

        Args:
          batch: arrays or trees of arrays `[B / n, ...]`, one of n parts of the batch.
        """
        processes = jax.process_count()

        def put(value: Any) -> jax.Array:
            shape = (value.shape[0] * processes, *value.shape[1:])
            sharding = self._of_batch(shape)
            return jax.make_array_from_process_local_data(sharding, value, shape)

        return jax.tree.map(put, dict(batch))

    def put_images(self, images: np.ndarray) -> jax.Array:
        """Places a batch of images [B, H, W, 3]; every process must have all of them."""
        return _put(images, self._of_batch(images.shape))

    def put_state(self, tree: PyTree) -> PyTree:
        """Places a state on the devices; every process must have all of it."""
        return jax.tree.map(_put, tree, self.state_shardings(tree))

    def replicate(self, tree: PyTree) -> PyTree:
        """Copies arrays, which must be equal on all processes, to every device."""
        return jax.tree.map(lambda value: _put(value, self.replicated), tree)

    def fetch(self, tree: PyTree) -> PyTree:
        """Returns whole arrays on the host; every process must call this."""
        if not all(leaf.is_fully_addressable for leaf in jax.tree.leaves(tree)):
            tree = self._replicate(tree)
        return jax.device_get(tree)

    def _of_batch(self, shape: tuple[int, ...]) -> NamedSharding:
        # Images whose rows do not divide evenly, as in evaluation, are not split by rows.
        rows = len(shape) >= 3 and shape[1] % self.mesh.shape["space"] == 0
        return NamedSharding(self.mesh, PartitionSpec(BATCH, *(("space",) if rows else ())))

    def _of_state(self, shape: tuple[int, ...]) -> NamedSharding:
        parts = self.mesh.shape["fsdp"]
        even = [axis for axis, size in enumerate(shape) if size % parts == 0]
        if parts == 1 or math.prod(shape) < MIN_SPLIT or not even:
            return self.replicated
        # The last of equal sides: the output channels of a square kernel.
        split = max(even, key=lambda axis: (shape[axis], axis))
        return NamedSharding(self.mesh, PartitionSpec(*[None] * split, "fsdp"))


def _put(value: Any, sharding: NamedSharding) -> jax.Array:
    """Places an array that every process has whole."""
    if sharding.is_fully_addressable:
        return jax.device_put(value, sharding)
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        # NumPy has no random keys.
        data = _put(jax.random.key_data(value), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(value))
    value = np.asarray(value)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def _shape(options: MeshOptions, count: int) -> tuple[int, ...]:
    """Returns the sides of the mesh, with the open side filled in."""
    sizes = [options.data, options.fsdp, options.space]
    asked = ", ".join(f"{axis} {size}" for axis, size in zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1:
        raise UserError(
            f"config.mesh has {asked}; sizes must be positive, and one of them may be -1, for all "
            "devices that remain"
        )
    if -1 in sizes:
        sizes[sizes.index(-1)] = count // -math.prod(sizes)
    if math.prod(sizes) != count:
        raise UserError(f"config.mesh has {asked}, which does not go with {count} devices")
    if sizes[1] > 1 and sizes[2] > 1:
        # With jaxlib 0.10.2, XLA multiplies values and gradients by 4 or 16.
        raise UserError(
            f"config.mesh has {asked}; give fsdp or space, not both: XLA miscomputes convolutions "
            "whose kernels and images are both split"
        )
    return tuple(sizes)
