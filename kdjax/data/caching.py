"""Where decoded training examples are kept: on the devices, on the host, or nowhere."""

import os
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import numpy as np

CachePlace = Literal["none", "host", "device"]
# What "auto" gives to examples; the networks and their activations need the rest.
DEVICE_SHARE = 0.25
HOST_SHARE = 0.125
BYTES_PER_PIXEL = 4  # RGB and label


class CacheDecision(NamedTuple):
    """Where examples are kept, and a line that says so and why."""

    place: CachePlace
    reason: str


def decide_cache(
    wanted: CachePlace | Literal["auto"],
    num_examples: int,
    sizes: Sequence[tuple[int, int]],
    *,
    device_bytes: int | None,
    host_bytes: int,
) -> CacheDecision:
    """Decides where decoded examples are cached: as `wanted`, or by memory for "auto".

    It depends on the examples and the machine alone, so that equal machines agree.

    Args:
      wanted: `config.data.cache`.
      num_examples: of all sets that training reads.
      sizes: height and width of some of them.
      device_bytes: memory of a device; None where it has none of its own.
      host_bytes: memory of the machine.
    """
    pixels = np.array(sizes, np.int64)
    on_host = int(num_examples * pixels.prod(1).mean() * BYTES_PER_PIXEL)
    on_device = int(num_examples * pixels.max(0).prod() * BYTES_PER_PIXEL)
    images = f"the {num_examples} training images"
    host = f"keeps {images} decoded in memory, about {_size(on_host)}"
    device = f"keeps {images} on every device, padded to one size, about {_size(on_device)}"
    none = f"reads and decodes {images} anew each time"
    if wanted != "auto":
        said = {"device": device, "host": host, "none": none}[wanted]
        return CacheDecision(wanted, f"{said}, as config.data.cache asks")
    if device_bytes is not None and on_device <= DEVICE_SHARE * device_bytes:
        return CacheDecision(
            "device", f"{device}, less than {DEVICE_SHARE:.0%} of its {_size(device_bytes)}"
        )
    if on_host <= HOST_SHARE * host_bytes:
        return CacheDecision("host", f"{host}, less than {HOST_SHARE:.1%} of {_size(host_bytes)}")
    return CacheDecision(
        "none",
        f"{none}, since in memory they take about {_size(on_host)}, more than {HOST_SHARE:.1%} of "
        f"{_size(host_bytes)}",
    )


def device_bytes() -> int | None:
    """Memory of one of the devices, or None where they have none of their own."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    return statistics.get("bytes_limit")


def host_bytes() -> int:
    """Memory of this machine for each of JAX's processes, were all of them on it."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // jax.process_count()


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
