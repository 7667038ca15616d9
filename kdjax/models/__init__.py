"""Networks: kdjax's own in Flax NNX, and the neutral form in which anybody's come."""

from kdjax.models.batch_norm import BatchNorm as BatchNorm
from kdjax.models.network import LinenNetwork as LinenNetwork
from kdjax.models.network import Network as Network
from kdjax.models.network import NNXNetwork as NNXNetwork
from kdjax.models.network import Variables as Variables
from kdjax.models.network import maps_of as maps_of
from kdjax.models.network import network_of as network_of
from kdjax.models.network import scores_of as scores_of
from kdjax.models.options import DTYPES as DTYPES
from kdjax.models.outputs import FeatureSpec as FeatureSpec
from kdjax.models.outputs import Preprocessing as Preprocessing
from kdjax.models.outputs import SegmentationOutput as SegmentationOutput
from kdjax.models.registry import NETWORKS as NETWORKS
from kdjax.models.registry import create as create
from kdjax.models.registry import make_network as make_network
from kdjax.models.segmenter import Segmenter as Segmenter
