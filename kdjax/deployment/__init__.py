"""Exports of students for other programs. TensorFlow is imported inside functions only."""

from kdjax.deployment.exported import ExportedStudent
from kdjax.deployment.exporting import Export, export
from kdjax.deployment.formats import FORMATS
from kdjax.deployment.measuring import Measured, measure, measure_torch

__all__ = [
    "FORMATS",
    "Export",
    "ExportedStudent",
    "Measured",
    "export",
    "measure",
    "measure_torch",
]
