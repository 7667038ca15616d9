"""Where decoded training examples are kept: on the devices, on the host, or nowhere."""

import os
import pathlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

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


def least_memory() -> tuple[int | None, int]:
    """Returns the memory of a device and of the host: the least that any process of the run has.

    Processes whose memory differs would cache in different places, and wait for each other for
    ever. Every process of the run has to call this function.

    Returns:
      Bytes of a device, None if a process has devices without memory of their own; bytes of a host.
    """
    own = _device_bytes(), _host_bytes()
    if jax.process_count() == 1:
        return own
    # In float32, since JAX would cut integers off at 32 bits.
    numbers = np.array([-1 if number is None else number for number in own], np.float32)
    device, host = multihost_utils.process_allgather(numbers).min(0).tolist()
    return None if device < 0 else int(device), int(host)


def _device_bytes() -> int | None:
    """Memory of one of the devices, or None if they have none of their own."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    return statistics.get("bytes_limit")


def _host_bytes() -> int:
    """Memory for each of JAX's processes if all of them share this machine."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(physical, *control_group_limits()) // jax.process_count()


def control_group_limits(
    mounted: pathlib.Path = pathlib.Path("/sys/fs/cgroup"),
    membership: pathlib.Path = pathlib.Path("/proc/self/cgroup"),
) -> list[int]:
    """Returns the limits of memory, in bytes, of the control groups that this process is in.

    Containers and batch systems give a process less memory by them than the machine has.

    Args:
      mounted: where the system shows its control groups, of version 1, 2, or both.
      membership: the file that lists those of a process.
    """
    limits = []
    for line in membership.read_text().splitlines() if membership.is_file() else ():
        _, controllers, group = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, name = mounted, "memory.max"
        if controllers:
            root, name = mounted / "memory", "memory.limit_in_bytes"
        # A group is bound by those above it, too. In a container its own path may not be shown.
        path = root / group.lstrip("/")
        for folder in (path, *path.parents):
            limit = folder / name
            if folder.is_relative_to(root) and limit.is_file():
                text = limit.read_text().strip()
                limits += [int(text)] if text.isdecimal() else []  # or "max"
    return limits


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
