"""Finds devices to compile for, on this machine or described from the chip table."""

import dataclasses
import importlib.metadata
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from kdjax.planning.chips import CHIPS, GPUS, TPUS, Chip
from kdjax.utils.errors import UserError

LOCAL = "local"

# Replace the answers of a TPU machine's metadata server, and let several processes load libtpu:
# it only compiles, and uses no TPU.
_NO_MACHINE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

# JAX's plugins that compile for CUDA. The extra `cuda-plan` installs the first.
_CUDA_COMPILERS = {"jax-cuda12-plugin", "jax-cuda13-plugin"}

# A GpuTargetConfigProto as text, with the fields that all GPUs share.
_GPU_TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  {fields} cuda_compute_capability {{ major: {major} }}
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{kind}"
"""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices and how they are connected.

    Attributes:
      name: the value of `--topology`.
      devices: the devices, for a mesh.
      chip: their row in the chip table, or None if the table has no row, as for a CPU.
      links: the links of the chip with the fewest neighbors in the slice.
    """

    name: str
    devices: Sequence[Any]
    chip: Chip | None
    links: int

    @property
    def send_bandwidth(self) -> float:
        """The bytes per second that all chips can send at once; 0.0 if unknown."""
        return self.links * self.chip.link_bandwidth if self.chip else 0.0


def find_topology(name: str) -> Topology:
    """Returns the devices that `name` stands for.

    Args:
      name: "local"; a TPU and the shape of a slice, such as "v5e:4x4"; or a GPU and the number per
        host, such as "h100:8", with the number of hosts in front, such as "h100:2x8".

    Raises:
      UserError: if the chip or the shape is unknown, or the compiler is not installed.
    """
    if name == LOCAL:
        devices = jax.devices()
        chip = next((chip for chip in CHIPS if devices[0].device_kind in chip.kinds), None)
        return Topology(name, devices, chip, chip.links if chip else 0)
    kind, _, shape = name.partition(":")
    if kind in TPUS and shape in TPUS[kind].shapes:
        return Topology(name, _tpus(TPUS[kind], shape), TPUS[kind], links_of(TPUS[kind], shape))
    if kind in GPUS and (hosts := re.fullmatch(r"(?:([1-9]\d*)x)?([1248])", shape)):
        devices = _gpus(GPUS[kind], f"1x{hosts[1] or 1}x{hosts[2]}")
        return Topology(name, devices, GPUS[kind], GPUS[kind].links)
    shapes = f"; {kind} comes as {', '.join(TPUS[kind].shapes)}" if kind in TPUS else ""
    raise UserError(
        f'--topology is "{name}": give {LOCAL}; a TPU ({", ".join(TPUS)}) and a shape, as v5e:4x4; '
        f"or a GPU ({', '.join(GPUS)}) and 1, 2, 4, or 8 per host, as h100:8, or h100:2x8 for two "
        f"hosts{shapes}"
    )


def links_of(chip: Chip, shape: str) -> int:
    """Returns the links of a slice's corner: one per side, or two if the side forms a ring."""
    sides = [int(side) for side in shape.split("x")]
    rings = [side % chip.wraps_at == 0 for side in sides]
    # In three dimensions, optical switches close all sides or none.
    if len(sides) == 3:
        rings = [all(rings)] * 3
    return sum(1 + ring for side, ring in zip(sides, rings, strict=True) if side > 1)


def _tpus(chip: Chip, shape: str) -> Sequence[Any]:
    try:
        found = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            "compiling for a TPU needs its compiler, libtpu: pip install 'kdjax[tpu]' (on any "
            "machine with Linux; no TPU is needed)"
        ) from None
    named = _libtpu_of_jax()
    if not f"{found}.".startswith(f"{named.removesuffix('*').removesuffix('.')}."):
        raise UserError(
            f"libtpu {found} is installed, and JAX {jax.__version__} goes with libtpu {named}: "
            "another one may crash. pip install 'kdjax[tpu]' installs the right one"
        )
    for name, value in _NO_MACHINE.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {}
    if shape == "1x1":
        options["chips_per_host_bounds"] = (1, 1, 1)
    if chip.name == "v4":
        # Makes the two cores of a chip one device, as on a TPU machine.
        options["chip_config_name"] = "megacore"
    return topologies.get_topology_desc(f"{chip.name}:{shape}", "tpu", **options).devices


def _libtpu_of_jax() -> str:
    """Returns the version of libtpu that JAX's extra `tpu` asks for, such as "0.0.42.*"."""
    found = re.search(
        r"libtpu\s*==\s*([\w.*]+)", "\n".join(importlib.metadata.requires("jax") or ())
    )
    assert found
    return found[1]


def _gpus(chip: Chip, shape: str) -> Sequence[Any]:
    if not _CUDA_COMPILERS & {x.metadata["Name"] for x in importlib.metadata.distributions()}:
        raise UserError(
            "compiling for a GPU needs its compiler, 480 MB: pip install 'kdjax[cuda-plan]' (on "
            "any machine with Linux; neither a GPU nor CUDA is needed)"
        )
    fields = " ".join(f"{name}: {x}" for name, x in chip.target.items() if name != "major")
    target = _GPU_TARGET.format(fields=fields, major=chip.target["major"], kind=chip.kinds[0])
    return topologies.get_topology_desc("", "cuda", topology=shape, target_config=target).devices
