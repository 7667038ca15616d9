"""Distillation losses for semantic segmentation: pure functions of arrays, on JAX alone.

Arrays are channels-last, `[..., H, W, C]`: logits or features of one image, or of a batch of any
shape. No function can tell other layouts from that: maps of PyTorch, `[B, C, H, W]`, and tokens,
`[B, N, C]`, go through as maps of another size and give numbers that look right. Transpose them, or
reshape tokens to rows and columns, first. What contradicts itself (labels or a kernel of another
shape, networks of different sizes) and wrong types and options are refused when the function is
traced.

Every function returns its terms in float32 before any reduction, and their plain mean is the loss
of the paper; `valid_mean` leaves out ignored pixels. What is left out may hold anything, NaN too.

The teacher receives no gradient, in derivatives of any order. All can be differentiated in reverse
and forward mode, more than once (`jax.grad`, `jax.jvp`, `jax.hessian`).

The batch may be spread over a mesh, of Auto or Explicit axes, under `jit` or inside `shard_map`.
Images whose rows are spread over devices are served on Auto axes; on Explicit ones `nfd`, `pfs` and
`skd_pairwise` are sharding errors. Some look at several images at once, and inside `shard_map` need
the `axis_name` over which these are spread: `nfd(axes="batch_space")`, `pkd`, `dist_intra`,
`cirkd_minibatch`, `jml` and `ClassStatistics.update`.
"""

from kdjax.losses._arrays import resize, resize_labels, sampling_weights
from kdjax.losses._augmented import fakd_cwd, fakd_kl, isda_cross_entropy, isda_logits
from kdjax.losses._cross_entropy import cross_entropy, jml, upsampled_cross_entropy, valid_mean
from kdjax.losses._features import attention_transfer, dead_channels, dsd_pairs, l2, nfd, pkd
from kdjax.losses._labels import bpkd, dkd, gap_weighted_kl, ifvd, wsld
from kdjax.losses._logits import cwd, dist_inter, dist_intra, pixelwise_kl
from kdjax.losses._similarity import cirkd_minibatch, pfs, skd_pairwise
from kdjax.losses._statistics import ClassStatistics, phi_s

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
    "gap_weighted_kl",
    "ifvd",
    "isda_cross_entropy",
    "isda_logits",
    "jml",
    "l2",
    "nfd",
    "pfs",
    "phi_s",
    "pixelwise_kl",
    "pkd",
    "resize",
    "resize_labels",
    "sampling_weights",
    "skd_pairwise",
    "upsampled_cross_entropy",
    "valid_mean",
    "wsld",
]
