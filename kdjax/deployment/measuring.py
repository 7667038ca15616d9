"""What an exported student takes on this machine: seconds of an image, and memory."""

import os
import pathlib
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from kdjax.deployment.formats import ExportedStudent, Size, files_of
from kdjax.utils import imports
from kdjax.utils.errors import RAISED_BY_USERS, UserError

WARM_UP = 3


class Measured(NamedTuple):
    """What one image at a time takes.

    Attributes:
      file: what was measured.
      bytes: how large the file is.
      size: height and width of the images.
      milliseconds: of an image, lower quartile, median and upper quartile.
      memory: bytes by which loading and running raised the process's peak, its runtime included.
    """

    file: str
    bytes: int
    size: Size
    milliseconds: tuple[float, float, float]
    memory: int

    def __str__(self) -> str:
        """One line for people."""
        low, median, high = self.milliseconds
        # Nothing is known of it where the process had held more before.
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
      size: of the images, where any will do.
      rounds: images, after three that are not counted.

    Raises:
      UserError: where that is no such file, or its runtime is not installed.
    """
    before = _peak()
    student = ExportedStudent.load(path)
    chosen = student.size if student.size.fixed else Size(*size)
    assert chosen.height is not None
    assert chosen.width is not None
    milliseconds = timed(
        lambda image: np.asarray(student.predict(image)),
        (1, chosen.height, chosen.width, 3),
        rounds,
    )
    file = pathlib.Path(path)
    held = sum(part.stat().st_size for part in files_of(file))
    return Measured(file.name, held, chosen, milliseconds, _peak() - before)


def measure_torch(name: str, *, size: Size, rounds: int = 50) -> Measured:
    """Runs a PyTorch network in the same way, on the CPU; its class scores become class numbers.

    Args:
      name: "package.module:function" of no arguments, which returns a `torch.nn.Module` that maps
        images [B, 3, H, W] to class scores of any size.
      size: of the images.
      rounds: images, after three that are not counted.

    Raises:
      UserError: where PyTorch is not installed, or there is no such function.
    """
    before = _peak()
    try:
        import torch
    except ImportError as error:
        raise UserError("--torch needs PyTorch: pip install torch") from error
    make = imports.resolve("PyTorch network", name, {}, asked_by="--torch")
    assert size.height is not None
    assert size.width is not None
    shape = (size.height, size.width)

    @torch.inference_mode()
    def predict(images: np.ndarray) -> Any:
        scores = network(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
        return torch.nn.functional.interpolate(scores, shape, mode="bilinear").argmax(1)

    try:
        network = make().eval()
        milliseconds = timed(predict, (1, *shape, 3), rounds)
    except RAISED_BY_USERS as error:
        raise UserError(
            f"--torch is {name}: {type(error).__name__}: {error}; it must be a function of no "
            "arguments that returns a torch.nn.Module, which maps images to class scores"
        ) from error
    held = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    return Measured(f"{name} in PyTorch", held, size, milliseconds, _peak() - before)


def timed(
    predict: Callable[[np.ndarray], Any], shape: tuple[int, ...], rounds: int
) -> tuple[float, float, float]:
    """Quartiles of the milliseconds that calls take, each with other noise."""
    generator = np.random.default_rng(0)
    seconds = []
    for _ in range(rounds + WARM_UP):
        images = generator.integers(0, 256, shape, np.uint8)
        started = time.perf_counter()
        predict(images)
        seconds.append(time.perf_counter() - started)
    low, median, high = 1e3 * np.percentile(seconds[WARM_UP:], [25, 50, 75])
    return float(low), float(median), float(high)


def _peak() -> int:
    """Peak of the resident set so far, in bytes; macOS counts bytes, Linux kilobytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
