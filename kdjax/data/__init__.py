"""Examples to batches: prepared sets and one's own, stateless augmentation and input pipelines.

`sets` finds and prepares data sets, whose builders share `conversion`; a `Dataset` is one of a
user's own; `pipeline` turns either into batches of NumPy arrays. The submodules import TensorFlow;
importing `kdjax.data` itself does not.
"""

from kdjax.data.dataset import Dataset
from kdjax.data.random_access import RandomAccess

__all__ = ["Dataset", "RandomAccess"]
