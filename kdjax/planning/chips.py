"""The chip table: what one accelerator can do by its maker's own figures."""

import dataclasses
from collections.abc import Mapping

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
      flops: multiplications and additions a second, by the dtype of a network.
      memory: bytes of its own memory.
      memory_bandwidth: bytes a second from and to that memory.
      link_bandwidth: bytes a second through one link, in one direction.
      links: to its neighbours.
      shapes: of the slices that there are; none where chips do not come in slices.
      wraps_at: a side of a slice is closed to a ring where it is a multiple of this.
      sources: where the figures stand.
    """

    name: str
    kinds: tuple[str, ...]
    flops: Mapping[str, float]
    memory: float
    memory_bandwidth: float
    link_bandwidth: float
    links: int
    shapes: tuple[str, ...] = ()
    wraps_at: int = 0
    sources: tuple[str, ...] = ()


def _tpu(flops: float) -> dict[str, float]:
    """XLA multiplies float32 in bfloat16 on a TPU unless a program asks for more."""
    return {"bfloat16": flops, "float32": flops}


# A link's bandwidth is the published one of a chip, in both directions and over all links, divided
# by both. v4's is the 50 GB/s of the paper.
CHIPS = (
    Chip(
        name="v4",
        kinds=("TPU v4",),
        flops=_tpu(275e12),
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
        flops=_tpu(197e12),
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
        flops=_tpu(459e12),
        memory=95 * GIB,
        memory_bandwidth=2765e9,
        link_bandwidth=1200e9 / 2 / 6,
        links=6,
        shapes=_CUBES,
        wraps_at=4,
        sources=("https://docs.cloud.google.com/tpu/docs/v5p",),
    ),
    Chip(
        name="v6e",
        kinds=("TPU v6 lite", "TPU v6e"),
        flops=_tpu(918e12),
        memory=32 * GIB,
        memory_bandwidth=1638e9,
        link_bandwidth=800e9 / 2 / 4,
        links=4,
        shapes=_FLAT,
        wraps_at=16,
        sources=("https://docs.cloud.google.com/tpu/docs/v6e",),
    ),
    # Dense, without sparsity; float32 convolutions run in TF32. NVLink counts as one link.
    Chip(
        name="A100 80GB",
        kinds=("NVIDIA A100-SXM4-80GB",),
        flops={"bfloat16": 312e12, "float32": 156e12},
        memory=80e9,
        memory_bandwidth=2039e9,
        link_bandwidth=300e9,
        links=1,
        sources=("https://www.nvidia.com/en-us/data-center/a100/",),
    ),
    Chip(
        name="H100 SXM",
        kinds=("NVIDIA H100 80GB HBM3",),
        flops={"bfloat16": 989e12, "float32": 494e12},
        memory=80e9,
        memory_bandwidth=3350e9,
        link_bandwidth=450e9,
        links=1,
        sources=("https://www.nvidia.com/en-us/data-center/h100/",),
    ),
    Chip(
        name="H200 SXM",
        kinds=("NVIDIA H200",),
        flops={"bfloat16": 989e12, "float32": 494e12},
        memory=141e9,
        memory_bandwidth=4800e9,
        link_bandwidth=450e9,
        links=1,
        sources=("https://www.nvidia.com/en-us/data-center/h200/",),
    ),
)

# Those that come in slices.
TPUS = {chip.name: chip for chip in CHIPS if chip.shapes}


def of_kind(kind: str) -> Chip | None:
    """The chip that JAX calls `kind`, or None where the table has none."""
    return next((chip for chip in CHIPS if kind in chip.kinds), None)
