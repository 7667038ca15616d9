"""Distillation losses for semantic segmentation: pure functions of arrays, on JAX alone.

Arrays are channels-last, `[..., H, W, C]`. Every function returns its terms in float32 before any
reduction, and their plain mean is the loss of the paper; `valid_mean` leaves out ignored pixels.
The teacher receives no gradient. What is wrong with shapes, types and options is said when the
function is traced.
"""

from kdjax.losses._augmented import fakd_cwd, fakd_kl, isda_cross_entropy, isda_logits
from kdjax.losses._cross_entropy import cross_entropy, upsampled_cross_entropy, valid_mean
from kdjax.losses._features import dead_channels, nfd
from kdjax.losses._logits import cwd, gap_weighted_kl, pixelwise_kl
from kdjax.losses._similarity import pfs, skd_pairwise
from kdjax.losses._statistics import ClassStatistics

__all__ = [
    "ClassStatistics",
    "cross_entropy",
    "cwd",
    "dead_channels",
    "fakd_cwd",
    "fakd_kl",
    "gap_weighted_kl",
    "isda_cross_entropy",
    "isda_logits",
    "nfd",
    "pfs",
    "pixelwise_kl",
    "skd_pairwise",
    "upsampled_cross_entropy",
    "valid_mean",
]
