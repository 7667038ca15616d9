"""Distillation losses for semantic segmentation: pure functions of arrays, on JAX alone.

Arrays are channels-last, `[..., H, W, C]`: logits or features of one image, or of a batch of any
shape. The functions cannot detect other layouts: PyTorch's maps `[B, C, H, W]` and tokens
`[B, N, C]` pass as maps of another size, and the numbers look right. Transpose maps, and reshape
tokens to rows and columns, before the call.

When a function is traced, it raises a `TypeError` if a map is not a floating-point array or labels
are not integers, and a `ValueError` if shapes contradict each other or an option is unknown or out
of range. The message says what would be right.

Every function returns its terms in float32 before any reduction, and their plain mean is the loss
of the paper. `valid_mean` leaves out ignored pixels, which may hold anything, even NaN.

The teacher receives no gradient, in derivatives of any order. All losses can be differentiated in
reverse and forward mode, more than once (`jax.grad`, `jax.jvp`, `jax.hessian`).

The batch may be split over a mesh of Auto or Explicit axes, under `jit` or inside `shard_map`. The
rows of an image may be split over Auto axes; over Explicit axes, `nfd`, `pfs`, and `skd_pairwise`
raise sharding errors. Some losses read several images at once. Inside `shard_map`, they need the
`axis_name` over which the images are split: `nfd(axes="batch_space")`, `pkd`, `dist_intra`,
`cirkd_minibatch`, `jml`, and `ClassStatistics.update`.
"""

from kdjax.losses.attention_transfer import attention_transfer
from kdjax.losses.bpkd import bpkd
from kdjax.losses.cirkd import cirkd_minibatch
from kdjax.losses.class_statistics import ClassStatistics
from kdjax.losses.cross_entropy import cross_entropy, upsampled_cross_entropy, valid_mean
from kdjax.losses.cwd import cwd
from kdjax.losses.dist import dist_inter, dist_intra
from kdjax.losses.dsd import dsd_pairs
from kdjax.losses.fakd import fakd_cwd, fakd_kl
from kdjax.losses.hard_pixels import focal, hard_pixels
from kdjax.losses.ifvd import ifvd
from kdjax.losses.isda import isda_cross_entropy, isda_logits
from kdjax.losses.jml import jml
from kdjax.losses.kl import dkd, gap_weighted_kl, pixelwise_kl, wsld
from kdjax.losses.l2 import l2
from kdjax.losses.logit_standardization import standardized_kl
from kdjax.losses.lovasz import lovasz_softmax
from kdjax.losses.nfd import dead_channels, nfd
from kdjax.losses.pfs import pfs
from kdjax.losses.phi_s import phi_s
from kdjax.losses.pkd import pkd
from kdjax.losses.resizing import resize, resize_labels, sampling_weights
from kdjax.losses.skd import skd_pairwise

__all__ = [
    "ClassStatistics",
    "attention_transfer",
    "bpkd",
    "cirkd_minibatch",
    "cross_entropy",
    "cwd",
    "dead_channels",
    "dist_inter",
    "dist_intra",
    "dkd",
    "dsd_pairs",
    "fakd_cwd",
    "fakd_kl",
    "focal",
    "gap_weighted_kl",
    "hard_pixels",
    "ifvd",
    "isda_cross_entropy",
    "isda_logits",
    "jml",
    "l2",
    "lovasz_softmax",
    "nfd",
    "pfs",
    "phi_s",
    "pixelwise_kl",
    "pkd",
    "resize",
    "resize_labels",
    "sampling_weights",
    "skd_pairwise",
    "standardized_kl",
    "upsampled_cross_entropy",
    "valid_mean",
    "wsld",
]
