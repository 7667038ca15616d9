"""Weights from torchvision: ResNets trained on ImageNet, and its FCN and DeepLabV3."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from kdjax.interop.files import pooled_image_first
from kdjax.interop.mmseg import from_backbone, from_mmseg, weights_of
from kdjax.interop.segformer import nvlabs_to_mmseg
from kdjax.models import Segmenter
from kdjax.models.mobilenet import LAYERS

# torchvision's prefix and mmsegmentation's, for heads in which the place in a Sequential tells all.
FCN = {"0": "convs.0.conv", "1": "convs.0.bn", "4": "conv_seg"}
DEEPLAB = {
    **{"0.convs.0.0": "aspp_modules.0.conv", "0.convs.0.1": "aspp_modules.0.bn"},
    **{f"0.convs.{i}.0": f"aspp_modules.{i}.conv" for i in (1, 2, 3)},
    **{f"0.convs.{i}.1": f"aspp_modules.{i}.bn" for i in (1, 2, 3)},
    **{"0.convs.4.1": "image_pool.1.conv", "0.convs.4.2": "image_pool.1.bn"},
    **{"0.project.0": "bottleneck.conv", "0.project.1": "bottleneck.bn"},
    **{"1": "refine.conv", "2": "refine.bn", "4": "conv_seg"},
}


def from_torchvision(
    net: Segmenter, state_dict: Mapping[str, Any], *, new_classifier: bool = False
) -> None:
    """Sets a network to torchvision's weights.

    Args:
      net: for `fcn_resnet50`, `deeplabv3_resnet101` and so on, the network of that name; for an
        image classifier, any network on a ResNet with the plain stem (`pspnet_r50b`), whose
        backbone it sets.
      state_dict: arrays as for `from_mmseg`, under torchvision's names.
      new_classifier: leave the classifiers as they are where their number of classes differs.

    Raises:
      UserError: as `from_mmseg`, in mmsegmentation's names.
    """
    weights = weights_of(state_dict)
    if not any(name.startswith("classifier.") for name in weights):
        from_backbone(net, weights)
        return
    names = DEEPLAB if "classifier.0.project.0.weight" in weights else FCN
    heads = {"classifier": ("decode_head", names), "aux_classifier": ("auxiliary_head", FCN)}
    renamed = {}
    for name, value in weights.items():
        head, _, rest = name.partition(".")
        if head in heads:
            module, _, leaf = rest.rpartition(".")
            target, places = heads[head]
            name = f"{target}.{places.get(module, module)}.{leaf}"
        renamed[name] = value
    project = "decode_head.bottleneck.conv.weight"
    if project in renamed:
        renamed[project] = pooled_image_first(renamed[project])
    from_mmseg(net, renamed, new_classifier=new_classifier)


def from_timm(net: Segmenter, state_dict: Mapping[str, Any]) -> None:
    """Sets the backbone of a network to the weights of one of timm's ResNets.

    Args:
      net: a network on a ResNet: with the plain stem for `resnet18` to `resnet101`, with the deep
        one (`pspnet_r50`) for `resnet50c`. The "d" and "s" models are other networks.
      state_dict: arrays as for `from_mmseg`, under timm's names.

    Raises:
      UserError: as `from_mmseg`.
    """
    weights = weights_of(state_dict)
    if "conv1.0.weight" in weights:
        weights = {
            re.sub(r"^bn1\.", "stem.7.", re.sub(r"^conv1\.(\d)\.", r"stem.\1.", name)): value
            for name, value in weights.items()
        }
    from_backbone(net, weights)


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
        whole = nvlabs_to_mmseg(kept).items()
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
