"""Students alone in the formats that other programs run; TensorFlow only inside functions."""

from kdjax.deployment.exporting import Export, export
from kdjax.deployment.formats import FORMATS, ExportedStudent

__all__ = [
    "FORMATS",
    "Export",
    "ExportedStudent",
    "export",
]
