"""Measures the time and memory of an exported student on this machine."""

import os
import pathlib
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from kdjax.deployment.exported import ExportedStudent
from kdjax.deployment.formats import Size, files_of
from kdjax.utils import imports
from kdjax.utils.errors import RAISED_BY_USERS, UserError

WARM_UP = 3


class Measured(NamedTuple):
    """The time and memory of predicting one image at a time.

    Attributes:
      file: the measured file.
      bytes: size of the file.
      size: height and width of the images.
      milliseconds: lower quartile, median, and upper quartile of an image.
      memory: bytes that loading and running added to the process's peak, including the runtime.
    """

    file: str
    bytes: int
    size: Size
    milliseconds: tuple[float, float, float]
    memory: int

    def __str__(self) -> str:
        low, median, high = self.milliseconds
        # Unknown if the process used more memory earlier.
        memory = f", {self.memory / 1e6:.0f} MB of memory" if self.memory else ""
        return (
            f"{self.file}: {self.bytes / 1e6:.1f} MB; an image of {self.size.height} x "
            f"{self.size.width} in {median:.1f} ms ({low:.1f} to {high:.1f}){memory}"
        )


def measure(
    path: str | os.PathLike[str], *, size: tuple[int, int] = (512, 1024), rounds: int = 50
) -> Measured:
    """Runs an exported student on images of noise, one at a time.

    Args:
      path: a file that `kdjax.export` wrote.
      size: the size of the images, if the file takes any size.
      rounds: number of timed images, after three others.

    Raises:
      UserError: see `ExportedStudent.load`.
    """
    before = _peak()
    student = ExportedStudent.load(path)
    chosen = Size(*student.size.or_else(size))
    milliseconds = timed(
        lambda image: np.asarray(student.predict(image)), student.size.or_else(size), rounds
    )
    file = pathlib.Path(path)
    held = sum(part.stat().st_size for part in files_of(file))
    return Measured(file.name, held, chosen, milliseconds, _peak() - before)


def measure_torch(name: str, *, size: tuple[int, int] | Size, rounds: int = 50) -> Measured:
    """Runs a PyTorch network in the same way, on the CPU. Its class scores become class numbers.

    Args:
      name: "package.module:function". The function takes no arguments and returns a
        `torch.nn.Module` that maps images [B, 3, H, W] to class scores of any size.
      size: the size of the images.
      rounds: number of timed images, after three others.

    Raises:
      UserError: if PyTorch is not installed, or there is no such function.
    """
    before = _peak()
    try:
        import torch
    except ImportError as error:
        raise UserError("--torch needs PyTorch: pip install torch") from error
    make = imports.resolve("PyTorch network", name, {}, asked_by="--torch")
    shape = Size(*size).or_else((512, 1024))

    @torch.inference_mode()
    def predict(images: np.ndarray) -> Any:
        scores = network(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
        return torch.nn.functional.interpolate(scores, shape, mode="bilinear").argmax(1)

    try:
        network = make().eval()
        milliseconds = timed(predict, shape, rounds)
    except RAISED_BY_USERS as error:
        raise UserError(
            f"--torch is {name}: {type(error).__name__}: {error}; it must be a function of no "
            "arguments that returns a torch.nn.Module, which maps images to class scores"
        ) from error
    held = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    return Measured(f"{name} in PyTorch", held, Size(*shape), milliseconds, _peak() - before)


def timed(
    predict: Callable[[np.ndarray], Any], size: tuple[int, int], rounds: int
) -> tuple[float, float, float]:
    """Returns the quartiles of the milliseconds of calls, each with other noise."""
    generator = np.random.default_rng(0)
    seconds = []
    for _ in range(rounds + WARM_UP):
        images = generator.integers(0, 256, (1, *size, 3), np.uint8)
        started = time.perf_counter()
        predict(images)
        seconds.append(time.perf_counter() - started)
    low, median, high = 1e3 * np.percentile(seconds[WARM_UP:], [25, 50, 75])
    return float(low), float(median), float(high)


def _peak() -> int:
    """Returns the peak memory of the process in bytes. macOS reports bytes, Linux kilobytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
