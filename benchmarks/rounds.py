"""Times training steps in turn, round after round, and makes a table of the times."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np


def timed(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of every call in every round, after a round that compiles."""
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def table(seconds: Mapping[str, Sequence[float]], images: int) -> str:
    """Returns a table: median, images/s, and the ratio to the first call of the same round.

    Args:
      seconds: the result of `timed`.
      images: the number of images of one call.
    """
    first = next(iter(seconds))
    lines = [f"| step | ms | images/s | ratio to {first} |", "| --- | ---: | ---: | ---: |"]
    for name, times in seconds.items():
        ratios = [a / b for a, b in zip(times, seconds[first], strict=True)]
        low, middle, high = np.percentile(ratios, [25, 50, 75])
        median = statistics.median(times)
        lines.append(
            f"| {name} | {1e3 * median:.1f} | {images / median:.0f} "
            f"| {middle:.2f} ({low:.2f} to {high:.2f}) |"
        )
    return "\n".join(lines)


def spread(values: Any, form: str) -> str:
    """Returns median and quartiles."""
    low, middle, high = (form.format(x) for x in np.percentile(values, [25, 50, 75]))
    return f"{middle} ({low} to {high})"


def machine() -> str:
    """Returns the hardware and versions of a measurement."""
    return (
        f"{jax.devices()[0].device_kind} x {jax.device_count()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, JAX {jax.__version__}; load {os.getloadavg()[0]:.1f}."
    )
