"""Students alone in the formats that other programs run; TensorFlow only inside functions."""

from kdjax.deployment.exporting import Export, export
from kdjax.deployment.formats import FORMATS, ExportedStudent

__all__ = [
    "FORMATS",
    "Export",
    "ExportedStudent",
    "export",
]
from kdjax.deployment.measuring import Measured as Measured
from kdjax.deployment.measuring import measure as measure
from kdjax.deployment.measuring import measure_torch as measure_torch
