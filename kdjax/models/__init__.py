"""Networks in Flax NNX; each returns one struct with logits, aux_logits and features by name."""

from kdjax.models.outputs import FeatureSpec as FeatureSpec
from kdjax.models.outputs import SegmentationOutput as SegmentationOutput
from kdjax.models.registry import DTYPES as DTYPES
from kdjax.models.registry import NETWORKS as NETWORKS
from kdjax.models.registry import create as create
from kdjax.models.segmenter import Segmenter as Segmenter
