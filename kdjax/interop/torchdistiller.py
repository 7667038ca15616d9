"""Weights of TorchDistiller (github.com/irfanICMLL/TorchDistiller, SemSeg-distill)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kdjax.interop.channel_order import red_first
from kdjax.interop.mmseg import from_mmseg, weights_of
from kdjax.interop.renaming import renamed, without_bias
from kdjax.models import Segmenter

PROJECT = "TorchDistiller's PSPNet"

# A rule renames what begins with its pattern.
RULES = [
    *((rf"conv{i + 1}\.", f"backbone.stem.{3 * i}.") for i in range(3)),
    *((rf"bn{i + 1}\.", f"backbone.stem.{3 * i + 1}.") for i in range(3)),
    (r"(layer[1-4])\.", r"backbone.\1."),
    (r"pspmodule\.stages\.(\d)\.1\.", r"decode_head.psp_modules.\1.1.conv."),
    (r"pspmodule\.stages\.(\d)\.2\.", r"decode_head.psp_modules.\1.1.bn."),
    (r"pspmodule\.bottleneck\.0\.", "decode_head.bottleneck.conv."),
    (r"pspmodule\.bottleneck\.1\.", "decode_head.bottleneck.bn."),
    (r"head\.", "decode_head.conv_seg."),
    (r"dsn\.0\.", "auxiliary_head.convs.0.conv."),
    (r"dsn\.1\.", "auxiliary_head.convs.0.bn."),
    (r"dsn\.3\.", "auxiliary_head.conv_seg."),
]
# What its InPlaceABN adds to the magnitude of a scale.
EPSILON = 1e-5


def from_torchdistiller(
    net: Segmenter, state_dict: Mapping[str, Any], *, new_classifier: bool = False
) -> None:
    """Sets a network to weights of TorchDistiller, or of the project before it.

    That one is structure_knowledge_distillation. Their batch norm, InPlaceABN before version 1,
    scales by the magnitude of its weight plus 1e-5; the network gets that scale. The images that
    they read have blue first; the network has red first, as all of kdjax, and
    `kdjax.models.preprocessing.MEAN_ONLY` says the rest.

    Args:
      net: `pspnet_r18@torchdistiller` or `pspnet_r101@torchdistiller`.
      state_dict: arrays as for `from_mmseg`, under TorchDistiller's names.
      new_classifier: leave the classifiers as they are where their number of classes differs.

    Raises:
      UserError: for a name that is no part of that network; otherwise as `from_mmseg`, in
        mmsegmentation's names.
    """
    weights = without_bias(weights_of(state_dict), "dsn.0", "dsn.1")
    for name in [name for name in weights if name.endswith(".running_var")]:
        scale = name.replace("running_var", "weight")
        if scale in weights:
            weights[scale] = np.abs(weights[scale]) + np.float32(EPSILON)
    found = {renamed(name, RULES, PROJECT): value for name, value in weights.items()}
    bottleneck = "decode_head.bottleneck.conv.weight"
    if bottleneck in found:
        found[bottleneck] = _map_first(found[bottleneck], _pooled_channels(found))
    from_mmseg(net, found, new_classifier=new_classifier)
    red_first(net)


def _pooled_channels(weights: Mapping[str, np.ndarray]) -> int:
    pooled = [name for name in weights if ".psp_modules." in name and name.endswith("conv.weight")]
    return sum(weights[name].shape[0] for name in pooled)


def _map_first(kernel: np.ndarray, pooled: int) -> np.ndarray:
    """Reorders the inputs of the last kernel, which there reads the pooled maps first."""
    return np.concatenate([kernel[:, pooled:], kernel[:, :pooled]], axis=1)
