"""Backbones of networks that classify images, of whichever project."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from kdjax.interop.mmseg import from_backbone, weights_of
from kdjax.interop.nvlabs import segformer_to_mmseg
from kdjax.interop.torchvision import from_timm
from kdjax.models import Segmenter
from kdjax.models.mobilenet import LAYERS

# What comes after the backbone, also the 1x1 convolution that ends MobileNetV2.
CLASSIFIERS = ("fc.", "head.", "classifier.", "conv2.")


def is_classifier(names: list[str]) -> bool:
    """Whether the names are those of an image classifier or of a backbone alone."""
    prefixes = {name.partition(".")[0] for name in names}
    resnet, torchvision, mit = {"layer1", "layer4"}, {"features", "classifier"}, {"layers"}
    nvlabs = {"patch_embed1", "block1"}
    openmmlab = "backbone" in prefixes <= {"backbone", "head", "neck"}
    whole = torchvision == prefixes or mit == prefixes or openmmlab
    return whole or resnet <= prefixes or nvlabs <= prefixes


def from_classifier(net: Segmenter, state_dict: Mapping[str, Any]) -> None:
    """Sets the backbone of a network to that of an image classifier; the heads stay.

    Args:
      net: on the same backbone as the classifier.
      state_dict: arrays as for `from_mmseg`: a ResNet of torchvision, timm or OpenMMLab, a
        MobileNetV2 of torchvision or OpenMMLab, or SegFormer's Mix Transformer as its authors or
        OpenMMLab publish it.

    Raises:
      UserError: as `from_mmseg`, in mmsegmentation's names.
    """
    weights = weights_of(state_dict)
    if "features.0.0.weight" in weights:
        weights = _torchvision_mobilenet(weights)
    weights = {name.removeprefix("backbone."): value for name, value in weights.items()}
    # A ResNet's bottlenecks have a `conv2` too, but below its layers.
    kept = {name: value for name, value in weights.items() if not name.startswith(CLASSIFIERS)}
    if "patch_embed1.proj.weight" in kept:
        whole = segformer_to_mmseg(kept).items()
        kept = {name.removeprefix("backbone."): value for name, value in whole}
    if "layers.0.0.projection.weight" in kept:
        from_backbone(net, kept)
    else:
        from_timm(net, kept)


def _torchvision_mobilenet(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames what torchvision counts through: `features` 1 to 17 are the blocks of all layers."""
    blocks = [
        f"layer{layer + 1}.{block}.conv"
        for layer, (_, _, count) in enumerate(LAYERS)
        for block in range(count)
    ]
    parts = ("conv", "bn")
    renamed = {}
    for name, value in weights.items():
        if entry := re.fullmatch(r"features\.0\.([01])\.(\w+)", name):
            name = f"conv1.{parts[int(entry[1])]}.{entry[2]}"
        elif match := re.fullmatch(r"features\.(\d+)\.conv\.(\d)(?:\.([01]))?\.(\w+)", name):
            number, place, inner, leaf = match.groups()
            # The last 1x1 convolution of a block and its norm stand in the block itself.
            last = 2 if number != "1" else 1
            place, part = (int(place), int(inner)) if inner else (last, int(place) - last)
            name = f"{blocks[int(number) - 1]}.{place}.{parts[part]}.{leaf}"
        elif name.startswith("features.18."):
            continue
        renamed[name] = value
    return renamed
