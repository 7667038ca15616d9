"""A table of accelerators with their published peak figures."""

import dataclasses
from collections.abc import Mapping
from typing import Any

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator.

    Attributes:
      name: the common name.
      kinds: JAX's `device_kind` of its devices.
      flops: peak multiplications and additions per second, by dtype.
      memory: bytes of device memory.
      link_bandwidth: bytes per second over one link, in one direction.
      links: number of links to neighbors.
      network_bandwidth: bytes per second to other hosts, in one direction. 0 if links reach them.
      usable: the share of the memory that JAX allocates for arrays.
      shapes: the slices that can be rented. Empty for GPUs.
      wraps_at: a side of a slice forms a ring if its length is a multiple of this.
      target: the fields of XLA's GpuTargetConfigProto. Empty for TPUs.
      sources: addresses of the pages with the figures.
    """

    name: str
    kinds: tuple[str, ...]
    flops: Mapping[str, float]
    memory: float
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
        """The bytes that arrays can take."""
        return self.usable * self.memory


# XLA multiplies float32 in bfloat16 on a TPU, unless a program asks for more. Google publishes a
# chip's bandwidth in both directions over all links, so one link has that over twice the links.
# The bandwidth of v4 is the 50 GB/s of the paper.
_FLAT: dict[str, Any] = {
    "links": 4,
    "wraps_at": 16,
    "shapes": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
}
_CUBES: dict[str, Any] = {
    "links": 6,
    "wraps_at": 4,
    "shapes": (
        *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8"),
        *("8x8x8", "8x8x16", "8x16x16"),
    ),
}
_GOOGLE = "https://docs.cloud.google.com/tpu/docs/"

# GPU figures are for dense products, and float32 convolutions run in TF32. NVLink counts as one
# link. The network is that of NVIDIA's own machines, one card per GPU; clouds may have less.
_SXM: dict[str, Any] = {"links": 1, "usable": 0.75}  # JAX allocates 75 % of a GPU's memory
_HOPPER = {
    "core_count": 132,
    "fpus_per_core": 128,
    "shared_memory_per_core": 233_472,
    "shared_memory_per_block_optin": 232_448,
    "l2_cache_size": 52_428_800,
    "clock_rate_ghz": 1.98,
    "major": 9,
}
_NVIDIA = "https://www.nvidia.com/en-us/data-center/"
_DGX_A100 = "https://docs.nvidia.com/dgx/dgxa100-user-guide/introduction-to-dgxa100.html (network)"
_BASEPOD = (
    "https://docs.nvidia.com/dgx-basepod/reference-architecture-infrastructure-foundation-"
    "enterprise-ai/latest/core-components.html (network: 400 Gb/s a GPU)"
)
_EVERY_GPU = (
    "https://docs.jax.dev/en/latest/gpu_memory_allocation.html (the share of the memory)",
    "https://github.com/openxla/xla/tree/main/xla/backends/gpu/target_config/specs",
)

CHIPS = (
    Chip(
        name="v4",
        kinds=("TPU v4",),
        flops={"bfloat16": 275e12, "float32": 275e12},
        memory=32 * GIB,
        link_bandwidth=50e9,
        **_CUBES,
        sources=(f"{_GOOGLE}v4", "https://arxiv.org/abs/2304.01433 (table 4)"),
    ),
    Chip(
        name="v5e",
        kinds=("TPU v5 lite", "TPU v5e"),
        flops={"bfloat16": 197e12, "float32": 197e12},
        memory=16 * GIB,
        link_bandwidth=400e9 / 2 / 4,
        **_FLAT,
        sources=(f"{_GOOGLE}v5e",),
    ),
    Chip(
        name="v5p",
        kinds=("TPU v5", "TPU v5p"),
        flops={"bfloat16": 459e12, "float32": 459e12},
        memory=95 * GIB,
        link_bandwidth=1200e9 / 2 / 6,
        **_CUBES,
        sources=(f"{_GOOGLE}v5p",),
    ),
    Chip(
        name="v6e",
        kinds=("TPU v6 lite", "TPU v6e"),
        flops={"bfloat16": 918e12, "float32": 918e12},
        memory=32 * GIB,
        link_bandwidth=800e9 / 2 / 4,
        **_FLAT,
        sources=(f"{_GOOGLE}v6e",),
    ),
    Chip(
        name="A100 80GB",
        kinds=("NVIDIA A100-SXM4-80GB",),
        flops={"bfloat16": 312e12, "float32": 156e12},
        memory=80e9,
        link_bandwidth=300e9,
        network_bandwidth=25e9,
        **_SXM,
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
        sources=(f"{_NVIDIA}a100/", _DGX_A100, *_EVERY_GPU),
    ),
    Chip(
        name="H100 SXM",
        kinds=("NVIDIA H100 80GB HBM3",),
        flops={"bfloat16": 989e12, "float32": 494e12},
        memory=80e9,
        link_bandwidth=450e9,
        network_bandwidth=50e9,
        **_SXM,
        target=_HOPPER
        | {"memory_bandwidth": 3_352_320_000_000, "device_memory_size": 84_942_979_072},
        sources=(f"{_NVIDIA}h100/", _BASEPOD, *_EVERY_GPU),
    ),
    Chip(
        name="H200 SXM",
        kinds=("NVIDIA H200",),
        flops={"bfloat16": 989e12, "float32": 494e12},
        memory=141e9,
        link_bandwidth=450e9,
        network_bandwidth=50e9,
        **_SXM,
        target=_HOPPER
        | {"memory_bandwidth": 4_800_000_000_000, "device_memory_size": 151_397_597_184},
        sources=(f"{_NVIDIA}h200/", _BASEPOD, *_EVERY_GPU),
    ),
)

TPUS = {chip.name: chip for chip in CHIPS if chip.shapes}
GPUS = {chip.name.split()[0].lower(): chip for chip in CHIPS if chip.target}
