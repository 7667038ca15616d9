"""Exports of students for other programs. TensorFlow is imported inside functions only."""

from kdjax.deployment.exported import ExportedStudent, Measured, measure
from kdjax.deployment.exporting import Export, export
from kdjax.deployment.formats import FORMATS

__all__ = [
    "FORMATS",
    "Export",
    "ExportedStudent",
    "Measured",
    "export",
    "measure",
]
