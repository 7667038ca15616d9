"""Data sets: prepared ones and a user's own, augmented and read in batches.

`sets` prepares and opens data sets. `Dataset` describes a user's own. `images` turns either into
batches. Importing `kdjax.data` itself does not import TensorFlow.
"""

from kdjax.data.dataset import Dataset, RandomAccess
from kdjax.utils.bands import Bands, measure_bands

__all__ = ["Bands", "Dataset", "RandomAccess", "measure_bands"]
