"""Weights from and to PyTorch projects, as dicts of NumPy arrays."""

from kdjax.interop.files import Checkpoint, read_weights
from kdjax.interop.mmseg import from_mmseg, red_first, to_mmseg, to_timm
from kdjax.interop.origins import has_auxiliary_head, load_weights, origin, preprocessing

__all__ = [
    "Checkpoint",
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
