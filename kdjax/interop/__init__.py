"""Weights from and to PyTorch projects, as dicts of NumPy arrays."""

from kdjax.interop.distillation_projects import from_cirkd as from_cirkd
from kdjax.interop.distillation_projects import from_torchdistiller as from_torchdistiller
from kdjax.interop.distillation_projects import red_first as red_first
from kdjax.interop.files import Checkpoint as Checkpoint
from kdjax.interop.files import read_weights as read_weights
from kdjax.interop.mmseg import from_backbone as from_backbone
from kdjax.interop.mmseg import from_mmseg as from_mmseg
from kdjax.interop.mmseg import to_mmseg as to_mmseg
from kdjax.interop.origins import BLUE_FIRST as BLUE_FIRST
from kdjax.interop.origins import CLASSIFIERS as CLASSIFIERS
from kdjax.interop.origins import has_auxiliary_head as has_auxiliary_head
from kdjax.interop.origins import load_weights as load_weights
from kdjax.interop.origins import origin as origin
from kdjax.interop.origins import preprocessing as preprocessing
from kdjax.interop.segformer import from_nvlabs as from_nvlabs
from kdjax.interop.segformer import segformer_to_mmseg as segformer_to_mmseg
from kdjax.interop.torchvision import from_classifier as from_classifier
from kdjax.interop.torchvision import from_timm as from_timm
from kdjax.interop.torchvision import from_torchvision as from_torchvision
from kdjax.interop.torchvision import to_timm as to_timm
