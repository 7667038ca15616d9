"""Weights from and to PyTorch projects, and PyTorch networks as teachers."""

from kdjax.interop.files import Checkpoint, read_weights
from kdjax.interop.mmseg import from_mmseg, red_first, to_mmseg, to_timm
from kdjax.interop.origins import has_auxiliary_head, load_weights, origin, preprocessing
from kdjax.interop.torch_teacher import TorchTeacher, channels_last

__all__ = [
    "Checkpoint",
    "TorchTeacher",
    "channels_last",
    "from_mmseg",
    "has_auxiliary_head",
    "load_weights",
    "origin",
    "preprocessing",
    "read_weights",
    "red_first",
    "to_mmseg",
    "to_timm",
]
