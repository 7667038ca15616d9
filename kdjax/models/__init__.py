"""Networks: kdjax's own in Flax NNX, and the neutral form in which anybody's come."""

from kdjax.models.batch_norm import BatchNorm
from kdjax.models.network import (
    LinenNetwork,
    Network,
    NNXNetwork,
    Variables,
    maps_of,
    network_of,
    scores_of,
)
from kdjax.models.options import DTYPES
from kdjax.models.outputs import FeatureSpec, Preprocessing, SegmentationOutput
from kdjax.models.registry import NETWORKS, create, make_network
from kdjax.models.segmenter import Segmenter

__all__ = [
    "DTYPES",
    "NETWORKS",
    "BatchNorm",
    "FeatureSpec",
    "LinenNetwork",
    "NNXNetwork",
    "Network",
    "Preprocessing",
    "SegmentationOutput",
    "Segmenter",
    "Variables",
    "create",
    "make_network",
    "maps_of",
    "network_of",
    "scores_of",
]
