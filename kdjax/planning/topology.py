"""Devices to compile for: a slice of TPUs by its name, or those attached to this machine."""

import dataclasses
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from kdjax.errors import UserError
from kdjax.planning import chips
from kdjax.planning.chips import Chip

LOCAL = "local"

# Tells libtpu what a TPU machine's metadata server would, and that it may share this machine: it
# compiles, and touches no TPU.
_NO_MACHINE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices, their chip where it is known, and the links that a chip sends over.

    Attributes:
      name: as it was asked for.
      devices: to make a mesh of.
      chip: None where the table does not have it, as for a CPU.
      links: of the chip with the fewest: one for each neighbour that it has in the slice.
    """

    name: str
    devices: Sequence[Any]
    chip: Chip | None
    links: int

    @property
    def send_bandwidth(self) -> float:
        """Bytes a second that every chip can send at once; 0.0 where unknown."""
        return self.links * self.chip.link_bandwidth if self.chip else 0.0


def find(name: str) -> Topology:
    """Returns the devices that `name` stands for.

    Args:
      name: "local", or a generation of TPU and a shape, as "v5e:4x4".

    Raises:
      UserError: for an unknown generation or shape (naming those that there are), or without
        libtpu.
    """
    if name == LOCAL:
        devices = jax.devices()
        chip = chips.of_kind(devices[0].device_kind)
        return Topology(name, devices, chip, chip.links if chip else 0)
    generation, _, shape = name.partition(":")
    if generation not in chips.TPUS or not shape:
        raise UserError(
            f'--topology is "{name}": give {LOCAL}, or a TPU ({", ".join(chips.TPUS)}) and its '
            "shape, as v5e:4x4"
        )
    chip = chips.TPUS[generation]
    if shape not in chip.shapes:
        raise UserError(f'--topology is "{name}": {generation} comes as {", ".join(chip.shapes)}')
    return Topology(name, _describe(chip, shape), chip, links_of(chip, shape))


def links_of(chip: Chip, shape: str) -> int:
    """Links of a slice's corner: one a side, two where the side is closed to a ring."""
    sides = [int(side) for side in shape.split("x")]
    # In three dimensions optical switches close all sides or none.
    wrapped = [side % chip.wraps_at == 0 for side in sides]
    if len(sides) == 3:
        wrapped = [all(wrapped)] * 3
    return sum(1 + ring for side, ring in zip(sides, wrapped, strict=True) if side > 1)


def _describe(chip: Chip, shape: str) -> Sequence[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "compiling for a TPU needs its compiler, libtpu: pip install 'kdjax[tpu]' (on any "
            "machine with Linux; no TPU is needed)"
        )
    for name, value in _NO_MACHINE.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {}
    if shape == "1x1":
        options["chips_per_host_bounds"] = (1, 1, 1)
    if chip.name == "v4":
        # The two cores of a chip as one device, as on a TPU machine.
        options["chip_config_name"] = "megacore"
    return topologies.get_topology_desc(f"{chip.name}:{shape}", "tpu", **options).devices
