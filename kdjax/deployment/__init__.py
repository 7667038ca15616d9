"""Students alone in the formats that other programs run; TensorFlow only inside functions."""

from kdjax.deployment.exporting import Export as Export
from kdjax.deployment.exporting import export as export
from kdjax.deployment.formats import FORMATS as FORMATS
from kdjax.deployment.formats import ExportedStudent as ExportedStudent
