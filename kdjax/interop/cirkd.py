"""Weights of CIRKD (github.com/winycg/CIRKD), turned into mmsegmentation's names."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from kdjax.interop.channel_order import red_first
from kdjax.interop.mmseg import from_mmseg, weights_of
from kdjax.interop.nvlabs import segformer_to_mmseg
from kdjax.interop.renaming import pooled_image_first, renamed
from kdjax.models import Segmenter

PROJECT = "CIRKD's PSPNet, DeepLabV3 or SegFormer"

_PARTS = {"0": "conv", "1": "bn"}


def _sequential(theirs: str, ours: str, first: int = 0) -> list[tuple[str, str]]:
    """Rules for a convolution and its norm at two successive places of a Sequential."""
    return [
        (rf"{theirs}\.{first + int(place)}\.", f"{ours}.{part}.") for place, part in _PARTS.items()
    ]


# A rule renames what begins with its pattern.
_HEADS = [
    *_sequential(r"auxlayer\.block", "auxiliary_head.convs.0"),
    (r"auxlayer\.block\.4\.", "auxiliary_head.conv_seg."),
]
PSPNET = [
    *(
        rule
        for i in range(4)
        for rule in _sequential(rf"head\.psp\.conv{i + 1}", f"decode_head.psp_modules.{i}.1")
    ),
    *_sequential(r"head\.block", "decode_head.bottleneck"),
    (r"head\.classifier\.", "decode_head.conv_seg."),
    *_HEADS,
]
DEEPLAB = [
    *_sequential(r"head\.aspp\.b0", "decode_head.aspp_modules.0"),
    *_sequential(r"head\.aspp\.b([123])\.block", r"decode_head.aspp_modules.\1"),
    *_sequential(r"head\.aspp\.b4\.gap", "decode_head.image_pool.1", first=1),
    *_sequential(r"head\.aspp\.project", "decode_head.bottleneck"),
    *_sequential(r"head\.block", "decode_head.refine"),
    (r"head\.block\.4\.", "decode_head.conv_seg."),
    *_HEADS,
]
_STEM = [
    *((rf"pretrained\.conv{i + 1}\.", f"backbone.stem.{3 * i}.") for i in range(3)),
    *((rf"pretrained\.bn{i + 1}\.", f"backbone.stem.{3 * i + 1}.") for i in range(3)),
]
_PLAIN_STEM = [(r"pretrained\.(conv1|bn1)\.", r"backbone.\1.")]
_STAGES = [(r"pretrained\.(layer[1-4])\.", r"backbone.\1.")]


def from_cirkd(
    net: Segmenter, state_dict: Mapping[str, Any], *, new_classifier: bool = False
) -> None:
    """Sets a network to weights of CIRKD.

    The images that CIRKD reads have blue first; the network that this makes has red first, as all
    of kdjax, and `Preprocessing` says the rest: `kdjax.models.preprocessing.MEAN_ONLY`.

    Args:
      net: a network whose name ends with "@cirkd" or "@cirkdv2", as `deeplabv3_r18@cirkd`.
      state_dict: arrays as for `from_mmseg`, under CIRKD's names.
      new_classifier: leave the classifiers as they are where their number of classes differs.

    Raises:
      UserError: where the weights are those of another of CIRKD's networks (UPerNet, MobileNetV3,
        MobileViT); otherwise as `from_mmseg`, in mmsegmentation's names.
    """
    weights = weights_of(state_dict)
    segformer = "linear_pred.weight" in weights
    weights = segformer_to_mmseg(weights) if segformer else _convolutional(weights)
    from_mmseg(net, weights, new_classifier=new_classifier)
    red_first(net)


def _convolutional(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    rules = DEEPLAB if "head.aspp.b0.0.weight" in weights else PSPNET
    rules = [*rules, *(_STEM if "pretrained.conv2.weight" in weights else _PLAIN_STEM), *_STAGES]
    found = {
        _mobilenet(name) or renamed(name, rules, PROJECT): value for name, value in weights.items()
    }
    bottleneck = "decode_head.bottleneck.conv.weight"
    if rules[0] == DEEPLAB[0] and bottleneck in found:
        found[bottleneck] = pooled_image_first(found[bottleneck])
    return found


def _mobilenet(name: str) -> str | None:
    """The name of a weight of MobileNetV2, whose blocks stand in one row there."""
    match = re.fullmatch(r"pretrained\.net\.features\.(\d+)\.(?:conv\.)?(\d)\.(.*)", name)
    if match is None:
        return None
    block, place, leaf = int(match[1]), int(match[2]), match[3]
    part = "bn" if place % 3 else "conv"
    if block == 0:
        return f"backbone.conv1.{part}.{leaf}"
    first = 1
    for layer, count in enumerate(MOBILENET_BLOCKS, 1):
        if block < first + count:
            return f"backbone.layer{layer}.{block - first}.conv.{place // 3}.{part}.{leaf}"
        first += count
    return None


# Blocks of each of MobileNetV2's layers.
MOBILENET_BLOCKS = (1, 2, 3, 4, 3, 3, 1)
