"""The formats by name."""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

from kdjax.deployment import savedmodel, stablehlo, tflite
from kdjax.deployment.labelling import Label, Size


class Format(NamedTuple):
    """How a function is written and loaded again.

    Attributes:
      file: what it is called in the output directory.
      write: writes a function for images of a size.
      read: loads it, as a function of NumPy arrays.
      flexible: whether batch and, where the network allows it, image size stay open.
    """

    file: str
    write: Callable[[Label, Size, pathlib.Path], None]
    read: Callable[[pathlib.Path], Label]
    flexible: bool = True

    def input_shape(self, size: Size) -> list[int | None]:
        """The shape of the images, with None for what is open."""
        return [None if self.flexible else 1, *size, 3]


FORMATS = {
    "stablehlo": Format("student.stablehlo", stablehlo.write, stablehlo.read),
    "savedmodel": Format("savedmodel", savedmodel.write, savedmodel.read),
    "tflite": Format("student.tflite", tflite.write, tflite.read, flexible=False),
}
