"""Decides where decoded training examples are kept: on the devices, on the host, or nowhere."""

import os
import pathlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

CachePlace = Literal["none", "host", "device"]
# The share of memory that "auto" uses. Networks and activations need the rest.
DEVICE_SHARE = 0.25
HOST_SHARE = 0.125


class CacheDecision(NamedTuple):
    """The place of decoded examples, and a log line with the reason."""

    place: CachePlace
    reason: str


def decide_cache(
    wanted: CachePlace | Literal["auto"],
    num_examples: int,
    sizes: Sequence[tuple[int, int]],
    *,
    pixel_bytes: int,
    device_bytes: int | None,
    host_bytes: int,
) -> CacheDecision:
    """Decides where decoded examples are kept: as `wanted`, or by memory for "auto".

    Args:
      wanted: `config.data.cache`.
      num_examples: the number of training examples in all sets.
      sizes: height and width of some of them.
      pixel_bytes: the bytes of a pixel of an image, with its label.
      device_bytes: the memory of a device; None if it has no memory of its own.
      host_bytes: the memory of the machine.
    """
    pixels = np.array(sizes, np.int64)
    on_host = int(num_examples * pixels.prod(1).mean() * pixel_bytes)
    on_device = int(num_examples * pixels.max(0).prod() * pixel_bytes)
    images = f"the {num_examples} training images"
    lines: dict[CachePlace, str] = {
        "device": f"Keeping {images} on every device, padded to one size, about {_size(on_device)}",
        "host": f"Keeping {images} decoded in memory, about {_size(on_host)}",
        "none": f"Reading and decoding {images} in every epoch",
    }
    if wanted != "auto":
        return CacheDecision(wanted, f"{lines[wanted]}, as set by config.data.cache")
    if device_bytes is not None and on_device <= DEVICE_SHARE * device_bytes:
        why = f", less than {DEVICE_SHARE:.0%} of its {_size(device_bytes)}"
        return CacheDecision("device", lines["device"] + why)
    if on_host <= HOST_SHARE * host_bytes:
        why = f", less than {HOST_SHARE:.1%} of {_size(host_bytes)}"
        return CacheDecision("host", lines["host"] + why)
    why = (
        f", because in memory they take about {_size(on_host)}, more than {HOST_SHARE:.1%} of "
        f"{_size(host_bytes)}"
    )
    return CacheDecision("none", lines["none"] + why)


def least_memory() -> tuple[int | None, int]:
    """Returns the least memory of a device and of a host in the run. Every process must call it.

    Otherwise, processes with different memory would cache in different places and deadlock.

    Returns:
      Bytes of a device, None if some devices have no memory of their own; bytes of a host.
    """
    # All processes may share this machine.
    own = _device_bytes(), machine_bytes() // jax.process_count()
    if jax.process_count() == 1:
        return own
    # In float32, because JAX would truncate integers to 32 bits.
    numbers = np.array([-1 if number is None else number for number in own], np.float32)
    device, host = multihost_utils.process_allgather(numbers).min(0).tolist()
    return None if device < 0 else int(device), int(host)


def _device_bytes() -> int | None:
    statistics = jax.local_devices()[0].memory_stats() or {}
    return statistics.get("bytes_limit")


def machine_bytes() -> int:
    """Returns the memory of this machine, or of its container or job."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(physical, *control_group_limits())


def control_group_limits(
    mounted: pathlib.Path = pathlib.Path("/sys/fs/cgroup"),
    membership: pathlib.Path = pathlib.Path("/proc/self/cgroup"),
) -> list[int]:
    """Returns the memory limits, in bytes, of the control groups of this process.

    Containers and batch systems limit the memory of a process by control groups.

    Args:
      mounted: where the system mounts control groups of version 1 or 2.
      membership: the file that lists the groups of a process.
    """
    limits = []
    for line in membership.read_text().splitlines() if membership.is_file() else ():
        _, controllers, group = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, name = mounted, "memory.max"
        if controllers:  # version 1
            root, name = mounted / "memory", "memory.limit_in_bytes"
        # The limits of parent groups hold too. A container may not show its own path.
        path = root / group.lstrip("/")
        for folder in (path, *path.parents):
            limit = folder / name
            if folder.is_relative_to(root) and limit.is_file():
                text = limit.read_text().strip()
                limits += [int(text)] if text.isdecimal() else []  # or "max"
    return limits


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
