"""Where training keeps its decoded examples, and why."""

import os
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import numpy as np

Place = Literal["none", "host", "device"]
# What "auto" gives to examples; the networks and their activations need the rest.
DEVICE_SHARE = 0.25
HOST_SHARE = 0.125
BYTES_PER_PIXEL = 4  # RGB and label


class Choice(NamedTuple):
    """Where examples are kept, and a line that says why."""

    place: Place
    reason: str


def choose(
    wanted: str,
    num_examples: int,
    sizes: Sequence[tuple[int, int]],
    *,
    device_bytes: int | None,
    host_bytes: int,
) -> Choice:
    """Chooses for "auto", and says what the others take.

    The answer depends on the examples and the machine alone, so that equal machines agree.

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
    host = f"{num_examples} decoded examples take about {_size(on_host)} of host memory"
    device = f"{num_examples} examples, padded to one size, take about {_size(on_device)} of"
    if wanted == "device":
        return Choice("device", f"as asked; {device} every device")
    if wanted == "host":
        return Choice("host", f"as asked; {host}")
    if wanted == "none":
        return Choice("none", "as asked; examples are read and decoded each time")
    if device_bytes is not None and on_device <= DEVICE_SHARE * device_bytes:
        return Choice(
            "device",
            f"{device} every device's {_size(device_bytes)}, less than {DEVICE_SHARE:.0%}",
        )
    if on_host <= HOST_SHARE * host_bytes:
        return Choice("host", f"{host}, less than {HOST_SHARE:.1%} of {_size(host_bytes)}")
    return Choice("none", f"{host}, more than {HOST_SHARE:.1%} of {_size(host_bytes)}")


def device_bytes() -> int | None:
    """Memory of one of the devices, or None where they have none of their own."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    return statistics.get("bytes_limit")


def host_bytes() -> int:
    """Memory of this machine for each of JAX's processes, were all of them on it."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // jax.process_count()


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
