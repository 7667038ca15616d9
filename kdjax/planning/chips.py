"""Accelerators, their figures, and topologies of them that need not be here."""

import dataclasses
import importlib.metadata
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental import topologies

from kdjax.errors import UserError

GIB = 2**30

# Shapes of one slice that Google Cloud rents out; a v5e or v6e of one chip is `1x1`.
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
    *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8"),
    *("8x8x8", "8x8x16", "8x16x16"),
)


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator, at its peak.

    Attributes:
      name: what people call it.
      kinds: what JAX calls its devices.
      flops: multiplications and additions a second, by dtype; "int8" where XLA convolves in it.
      memory: bytes of its own memory.
      memory_bandwidth: bytes a second from and to that memory.
      link_bandwidth: bytes a second through one link, in one direction.
      links: to its neighbours.
      network_bandwidth: bytes a second to other hosts, in one direction; 0 where links reach them.
      usable: the share of the memory that arrays can have.
      shapes: of the slices that there are; none where chips do not come in slices.
      wraps_at: a side of a slice is closed to a ring where it is a multiple of this.
      target: what XLA compiles for, by the names of its GpuTargetConfigProto; empty for TPUs.
      sources: where the figures stand.
    """

    name: str
    kinds: tuple[str, ...]
    flops: Mapping[str, float]
    memory: float
    memory_bandwidth: float
    link_bandwidth: float
    links: int
    network_bandwidth: float = 0.0
    usable: float = 1.0
    shapes: tuple[str, ...] = ()
    wraps_at: int = 0
    target: Mapping[str, float] = dataclasses.field(default_factory=dict)
    sources: tuple[str, ...] = ()

    @property
    def usable_memory(self) -> float:
        """Bytes that arrays can have."""
        return self.usable * self.memory


def _tpu(flops: float, int8: float) -> dict[str, float]:
    """XLA multiplies float32 in bfloat16 on a TPU unless a program asks for more."""
    return {"bfloat16": flops, "float32": flops, "int8": int8}


# What JAX takes of a GPU's memory at its start. The rest is headroom for what no plan counts.
_GPU_SHARE = 0.75
_GPU_SOURCES = (
    "https://docs.jax.dev/en/latest/gpu_memory_allocation.html (the share of the memory)",
    "https://github.com/openxla/xla/tree/main/xla/backends/gpu/target_config/specs",
)
_BASEPOD = (
    "https://docs.nvidia.com/dgx-basepod/reference-architecture-infrastructure-foundation-"
    "enterprise-ai/latest/core-components.html (network: 400 Gb/s a GPU)"
)
_DGX_A100 = "https://docs.nvidia.com/dgx/dgxa100-user-guide/introduction-to-dgxa100.html (network)"
_HOPPER = {
    "core_count": 132,
    "fpus_per_core": 128,
    "shared_memory_per_core": 233_472,
    "shared_memory_per_block_optin": 232_448,
    "l2_cache_size": 52_428_800,
    "clock_rate_ghz": 1.98,
    "major": 9,
}

_INT8 = "https://github.com/jax-ml/jax/blob/main/jax/_src/pallas/mosaic/tpu_info.py (int8)"

# A link's bandwidth is the published one of a chip, in both directions and over all links, divided
# by both. v4's is the 50 GB/s of the paper.
CHIPS = (
    Chip(
        name="v4",
        kinds=("TPU v4",),
        flops=_tpu(275e12, 275e12),
        memory=32 * GIB,
        memory_bandwidth=1200e9,
        link_bandwidth=50e9,
        links=6,
        shapes=_CUBES,
        wraps_at=4,
        sources=(
            "https://docs.cloud.google.com/tpu/docs/v4",
            "https://arxiv.org/abs/2304.01433 (table 4)",
        ),
    ),
    Chip(
        name="v5e",
        kinds=("TPU v5 lite", "TPU v5e"),
        flops=_tpu(197e12, 393e12),
        memory=16 * GIB,
        memory_bandwidth=819e9,
        link_bandwidth=400e9 / 2 / 4,
        links=4,
        shapes=_FLAT,
        wraps_at=16,
        sources=("https://docs.cloud.google.com/tpu/docs/v5e",),
    ),
    Chip(
        name="v5p",
        kinds=("TPU v5", "TPU v5p"),
        flops=_tpu(459e12, 918e12),
        memory=95 * GIB,
        memory_bandwidth=2765e9,
        link_bandwidth=1200e9 / 2 / 6,
        links=6,
        shapes=_CUBES,
        wraps_at=4,
        sources=("https://docs.cloud.google.com/tpu/docs/v5p", _INT8),
    ),
    Chip(
        name="v6e",
        kinds=("TPU v6 lite", "TPU v6e"),
        flops=_tpu(918e12, 1836e12),
        memory=32 * GIB,
        memory_bandwidth=1638e9,
        link_bandwidth=800e9 / 2 / 4,
        links=4,
        shapes=_FLAT,
        wraps_at=16,
        sources=("https://docs.cloud.google.com/tpu/docs/v6e",),
    ),
    # Dense, without sparsity; float32 convolutions run in TF32. NVLink counts as one link, and the
    # network is that of NVIDIA's own machines, a card for each GPU: clouds may have less.
    Chip(
        name="A100 80GB",
        kinds=("NVIDIA A100-SXM4-80GB",),
        flops={"bfloat16": 312e12, "float32": 156e12},
        memory=80e9,
        memory_bandwidth=2039e9,
        link_bandwidth=300e9,
        links=1,
        network_bandwidth=25e9,
        usable=_GPU_SHARE,
        target={
            "core_count": 108,
            "fpus_per_core": 64,
            "shared_memory_per_core": 167_936,
            "shared_memory_per_block_optin": 166_912,
            "l2_cache_size": 41_943_040,
            "clock_rate_ghz": 1.41,
            "major": 8,
            "memory_bandwidth": 2_039_040_000_000,
            "device_memory_size": 85_100_068_864,
        },
        sources=(
            "https://www.nvidia.com/en-us/data-center/a100/",
            "https://docs.nvidia.com/dgx/dgxa100-user-guide/introduction-to-dgxa100.html (network)",
            *_GPU_SOURCES,
        ),
    ),
    Chip(
        name="H100 SXM",
        kinds=("NVIDIA H100 80GB HBM3",),
        flops={"bfloat16": 989e12, "float32": 494e12},
        memory=80e9,
        memory_bandwidth=3350e9,
        link_bandwidth=450e9,
        links=1,
        network_bandwidth=50e9,
        usable=_GPU_SHARE,
        target={
            **_HOPPER,
            "memory_bandwidth": 3_352_320_000_000,
            "device_memory_size": 84_942_979_072,
        },
        sources=("https://www.nvidia.com/en-us/data-center/h100/", _BASEPOD, *_GPU_SOURCES),
    ),
    Chip(
        name="H200 SXM",
        kinds=("NVIDIA H200",),
        flops={"bfloat16": 989e12, "float32": 494e12},
        memory=141e9,
        memory_bandwidth=4800e9,
        link_bandwidth=450e9,
        links=1,
        network_bandwidth=50e9,
        usable=_GPU_SHARE,
        target={
            **_HOPPER,
            "memory_bandwidth": 4_800_000_000_000,
            "device_memory_size": 151_397_597_184,
        },
        sources=("https://www.nvidia.com/en-us/data-center/h200/", _BASEPOD, *_GPU_SOURCES),
    ),
)

# Those that come in slices, and those of which a host has up to eight.
TPUS = {chip.name: chip for chip in CHIPS if chip.shapes}
GPUS = {chip.name.split()[0].lower(): chip for chip in CHIPS if chip.target}


def chip_of_kind(kind: str) -> Chip | None:
    """The chip that JAX calls `kind`, or None where the table has none."""
    return next((chip for chip in CHIPS if kind in chip.kinds), None)


LOCAL = "local"

# Tells libtpu what a TPU machine's metadata server would, and that it may share this machine: it
# compiles, and touches no TPU.
_NO_MACHINE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

# JAX's plugins that compile for CUDA; the extra brings the first.
_CUDA_COMPILERS = {"jax-cuda12-plugin", "jax-cuda13-plugin"}

# What their descriptions for XLA have in common.
_EVERY_GPU = """
threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
shared_memory_per_block: 49152 registers_per_core_limit: 65536 registers_per_block_limit: 65536
block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
"""


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


def find_topology(name: str) -> Topology:
    """Returns the devices that `name` stands for.

    Args:
      name: "local", a generation of TPU and a shape, as "v5e:4x4", or a GPU and how many a host
        has, as "h100:8", with hosts before them, as "h100:2x8".

    Raises:
      UserError: for an unknown chip or shape (naming those that there are), or without the
        compiler.
    """
    if name == LOCAL:
        devices = jax.devices()
        chip = chip_of_kind(devices[0].device_kind)
        return Topology(name, devices, chip, chip.links if chip else 0)
    kind, _, shape = name.partition(":")
    if kind not in {*TPUS, *GPUS} or not shape:
        raise UserError(
            f'--topology is "{name}": give {LOCAL}, a TPU ({", ".join(TPUS)}) and its shape, as '
            f"v5e:4x4, or a GPU ({', '.join(GPUS)}) and how many, as h100:8 or h100:2x8 for 2 hosts"
        )
    if kind in GPUS:
        return Topology(name, _describe_gpus(GPUS[kind], name, shape), GPUS[kind], GPUS[kind].links)
    chip = TPUS[kind]
    if shape not in chip.shapes:
        raise UserError(f'--topology is "{name}": {kind} comes as {", ".join(chip.shapes)}')
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
        # The two cores of a chip as one device, as on a TPU machine.
        options["chip_config_name"] = "megacore"
    return topologies.get_topology_desc(f"{chip.name}:{shape}", "tpu", **options).devices


def _libtpu_of_jax() -> str:
    """The version of libtpu that JAX's extra `tpu` asks for, as "0.0.42.*"."""
    for requirement in importlib.metadata.requires("jax") or ():
        if match := re.match(r"libtpu\s*==\s*([\w.*]+)", requirement):
            return match[1]
    raise UserError(f"JAX {jax.__version__} does not say which libtpu it goes with")


def _describe_gpus(chip: Chip, name: str, shape: str) -> Sequence[Any]:
    found = re.fullmatch(r"(?:([1-9]\d*)x)?([1248])", shape)
    if found is None:
        raise UserError(
            f'--topology is "{name}": give 1, 2, 4 or 8 GPUs of a host, as h100:8, or so many of '
            "each of several hosts, as h100:2x8"
        )
    if not _CUDA_COMPILERS & {x.metadata["Name"] for x in importlib.metadata.distributions()}:
        raise UserError(
            "compiling for a GPU needs its compiler, 480 MB: pip install 'kdjax[cuda-plan]' (on "
            "any machine with Linux; neither a GPU nor CUDA is needed)"
        )
    return topologies.get_topology_desc(
        "", "cuda", topology=f"1x{found[1] or 1}x{found[2]}", target_config=_target(chip)
    ).devices


def _target(chip: Chip) -> str:
    """A GpuTargetConfigProto as text."""
    figures = dict(chip.target)
    major = figures.pop("major")
    lines = " ".join(f"{name}: {value}" for name, value in figures.items())
    return (
        f"gpu_device_info {{ {_EVERY_GPU} {lines} cuda_compute_capability {{ major: {major} }} }} "
        'platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 patch: 0 } '
        f'device_description_str: "{chip.kinds[0]}"'
    )
