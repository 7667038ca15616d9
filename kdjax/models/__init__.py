"""The networks of kdjax, in Flax NNX, and the `Network` protocol for any other network."""

from kdjax.models.adapters import LinenNetwork, NNXNetwork, network_of
from kdjax.models.batch_norm import BatchNorm
from kdjax.models.network import Network, Variables, maps_of, scores_of
from kdjax.models.options import DTYPES
from kdjax.models.outputs import FeatureSpec, Preprocessing, SegmentationOutput
from kdjax.models.queries import query_logits, query_scores
from kdjax.models.registry import NETWORKS, create, make_network
from kdjax.models.segmenter import FeatureExtractor, Segmenter

__all__ = [
    "DTYPES",
    "NETWORKS",
    "BatchNorm",
    "FeatureExtractor",
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
    "query_logits",
    "query_scores",
    "scores_of",
]
