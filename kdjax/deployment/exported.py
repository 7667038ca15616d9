"""Loads an exported student as other programs do, and measures its time and memory."""

import json
import os
import pathlib
import resource
import sys
import time
from typing import NamedTuple

import numpy as np

from kdjax.deployment.formats import (
    DESCRIPTION,
    FORMATS,
    PredictFn,
    Size,
    digest,
    files_of,
    labels_of,
)
from kdjax.utils.errors import UserError, first_line

WARM_UP = 3  # images


class ExportedStudent(NamedTuple):
    """A file that `kdjax.export` wrote.

    Attributes:
      predict: maps images to class ids.
      run: maps images to what the file returns.
      size: the size of the images that it takes.
      class_names: a name per class.
      dtype: the number type of the images.
      channels: the number of their bands, 3 for photos.
    """

    predict: PredictFn
    run: PredictFn
    size: Size
    class_names: tuple[str, ...]
    dtype: str
    channels: int

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ExportedStudent":
        """Loads a file by its name and by the `export.json` in the same folder.

        The digest of the file is compared first, because a runtime may crash on a damaged file.

        Raises:
          UserError: if the file or its description is missing or damaged, or if its runtime cannot
            load the file.
        """
        file = pathlib.Path(path)
        found = {chosen.file: name for name, chosen in FORMATS.items()}
        if file.name not in found or not file.exists():
            raise UserError(
                f"{file}: no exported student; name one of the files {', '.join(found)} that "
                "kdjax.export wrote"
            )
        name, beside = found[file.name], file.with_name(DESCRIPTION)
        try:
            description = json.loads(beside.read_text(encoding="utf-8"))
            written = description["exports"][name]
            _, height, width, channels = written["input_shape"]
            dtype = description["input"]["type"]
            class_names = tuple(description["class_names"])
            returned = description["output"]["name"]
            same = written["sha256"] == digest(file)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{beside}: it must lie beside {file.name}, as kdjax.export wrote both"
            ) from error
        if not same:
            raise UserError(
                f"{file}: this is not the file that {beside} describes; export the student again"
            )
        try:
            run = FORMATS[name].read(file)
        except UserError:
            raise
        # Each runtime has its own errors, for example for a file of another version.
        except Exception as error:
            raise UserError(f"{file}: this file cannot be loaded: {first_line(error)}") from error

        size = Size(height, width)
        return cls(labels_of(run, returned), run, size, class_names, dtype, channels)


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
    before, file = _peak(), pathlib.Path(path)
    student = ExportedStudent.load(file)
    chosen = student.size.or_else(size)
    generator = np.random.default_rng(0)
    seconds = []
    for _ in range(rounds + WARM_UP):
        images = generator.integers(0, 256, (1, *chosen, student.channels)).astype(student.dtype)
        started = time.perf_counter()
        np.asarray(student.run(images))
        seconds.append(time.perf_counter() - started)
    low, median, high = 1e3 * np.percentile(seconds[WARM_UP:], [25, 50, 75])
    held = sum(part.stat().st_size for part in files_of(file))
    milliseconds = float(low), float(median), float(high)
    return Measured(file.name, held, Size(*chosen), milliseconds, _peak() - before)


def _peak() -> int:
    """Returns the peak memory of the process in bytes. macOS reports bytes, Linux kilobytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
