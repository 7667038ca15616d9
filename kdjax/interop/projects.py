"""Weights of research projects: SegFormer of its authors, CIRKD, TorchDistiller.

SegFormer's authors (github.com/NVlabs/SegFormer) published networks for mmsegmentation 0.11, which
had no SegFormer of its own, and backbones that classify images (`mit_b0.pth`). CIRKD took their
code over. The names are those of that code; no published file was at hand.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from kdjax.interop.files import pooled_image_first, renamed, reversed_stages, without_bias
from kdjax.interop.mmseg import from_mmseg, leaves, weights_of
from kdjax.models import Segmenter
from kdjax.utils.errors import UserError

NVLABS_NETWORKS = "SegFormer as its authors wrote it"
# Where mmsegmentation puts the parts; CIRKD has the network as one.
PARTS = r"^(backbone|decode_head)\."
# mmsegmentation gives every head this classifier, and this one has another.
UNUSED = "conv_seg."
# Linear maps of pixels there that are 1x1 convolutions in mmsegmentation.
NVLABS_CONVOLUTIONS = r".*\.mlp\.fc[12]\.weight|linear_c\d\.proj\.weight"

_NVLABS_BLOCK = r"block(\d)\.(\d+)"
BLOCK_NAME = r"backbone.layers.\1.1.\2"
# A rule renames what begins with its pattern.
NVLABS_RULES = [
    (r"patch_embed(\d)\.proj\.", r"backbone.layers.\1.0.projection."),
    (r"patch_embed(\d)\.norm\.", r"backbone.layers.\1.0.norm."),
    (rf"{_NVLABS_BLOCK}\.norm([12])\.", rf"{BLOCK_NAME}.norm\3."),
    (rf"{_NVLABS_BLOCK}\.attn\.in_proj_", rf"{BLOCK_NAME}.attn.attn.in_proj_"),
    (rf"{_NVLABS_BLOCK}\.attn\.proj\.", rf"{BLOCK_NAME}.attn.attn.out_proj."),
    (rf"{_NVLABS_BLOCK}\.attn\.(sr|norm)\.", rf"{BLOCK_NAME}.attn.\3."),
    (rf"{_NVLABS_BLOCK}\.mlp\.fc1\.", rf"{BLOCK_NAME}.ffn.layers.0."),
    (rf"{_NVLABS_BLOCK}\.mlp\.dwconv\.dwconv\.", rf"{BLOCK_NAME}.ffn.layers.1."),
    (rf"{_NVLABS_BLOCK}\.mlp\.fc2\.", rf"{BLOCK_NAME}.ffn.layers.4."),
    (r"norm(\d)\.", r"backbone.layers.\1.2."),
    (r"linear_c(\d)\.proj\.", r"decode_head.convs.\1.conv."),
    # mmcv's ConvModule at NVlabs, a Sequential at CIRKD.
    (r"linear_fuse\.(?:conv|0)\.", "decode_head.fusion_conv.conv."),
    (r"linear_fuse\.(?:bn|1)\.", "decode_head.fusion_conv.bn."),
    (r"linear_pred\.", "decode_head.conv_seg."),
]


def from_nvlabs(
    net: Segmenter, state_dict: Mapping[str, Any], *, new_classifier: bool = False
) -> None:
    """Sets a network to weights of the authors' SegFormer.

    Args:
      net: a network whose name ends with "@nvlabs", as `segformer_b0@nvlabs`.
      state_dict: arrays as for `from_mmseg`, under the authors' names.
      new_classifier: leave the classifier as it is where its number of classes differs.

    Raises:
      UserError: as `from_mmseg`, in mmsegmentation's names.
    """
    weights = nvlabs_to_mmseg(weights_of(state_dict))
    from_mmseg(net, weights, new_classifier=new_classifier)


def nvlabs_to_mmseg(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames the authors' weights: queries, keys and values become one matrix.

    The fusing convolution reads the stages from first to last, where theirs begins with the last.

    Args:
      state_dict: arrays by the authors' names, of a whole network or of its backbone.

    Raises:
      UserError: for a name that is not SegFormer's, or queries that are missing.
    """
    weights = {re.sub(PARTS, "", name): array for name, array in state_dict.items()}
    weights = {name: value for name, value in weights.items() if not name.startswith(UNUSED)}
    found = {}
    for name, array in _fused_nvlabs(
        without_bias(weights, "linear_fuse.0", "linear_fuse.1")
    ).items():
        if re.fullmatch(NVLABS_CONVOLUTIONS, name):
            array = array[..., None, None]
        if name in ("linear_fuse.0.weight", "linear_fuse.conv.weight"):
            array = reversed_stages(array)
        # Stages count from 1 there.
        counted = re.sub(
            r"^(patch_embed|block|norm|linear_c)(\d)", lambda m: f"{m[1]}{int(m[2]) - 1}", name
        )
        found[renamed(counted, NVLABS_RULES, NVLABS_NETWORKS)] = array
    return found


def _fused_nvlabs(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Joins the queries with what holds keys and values."""
    joined = {}
    for name, array in weights.items():
        if ".attn.kv." in name:
            query = name.replace(".kv.", ".q.")
            if query not in weights:
                raise UserError(f"the weights lack {query}")
            joined[name.replace("kv.", "in_proj_")] = np.concatenate([weights[query], array])
        elif ".attn.q." not in name:
            joined[name] = array
    return joined


# mmsegmentation's names of the kernels that read the images.
FIRST = (
    "backbone.stem.0.weight",
    "backbone.conv1.weight",
    "backbone.conv1.conv.weight",
    "backbone.timm_model.conv_stem.weight",
    "backbone.layers.0.0.projection.weight",
    "backbone.patch_embed.projection.weight",
)


def red_first(net: Segmenter) -> None:
    """Turns around the channels that the first convolution reads, in place.

    Raises:
      UserError: where the network has none of the first convolutions that are known.
    """
    found = leaves(net)
    for name in FIRST:
        if name in found:
            _, kernel = found[name]
            kernel[...] = kernel[...][:, :, ::-1]
            return
    raise UserError("which convolution of this network reads the images is not known")


CIRKD_NETWORKS = "CIRKD's PSPNet, DeepLabV3 or SegFormer"

_PARTS = {"0": "conv", "1": "bn"}


def _sequential(source: str, target: str, first: int = 0) -> list[tuple[str, str]]:
    """Rules for a convolution and its norm at two successive places of a Sequential."""
    return [
        (rf"{source}\.{first + int(place)}\.", f"{target}.{part}.")
        for place, part in _PARTS.items()
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
    of kdjax, and `Preprocessing` says the rest: `kdjax.models.outputs.MEAN_ONLY`.

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
    weights = nvlabs_to_mmseg(weights) if segformer else _convolutional(weights)
    from_mmseg(net, weights, new_classifier=new_classifier)
    red_first(net)


def _convolutional(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    rules = DEEPLAB if "head.aspp.b0.0.weight" in weights else PSPNET
    rules = [*rules, *(_STEM if "pretrained.conv2.weight" in weights else _PLAIN_STEM), *_STAGES]
    found = {
        _mobilenet(name) or renamed(name, rules, CIRKD_NETWORKS): value
        for name, value in weights.items()
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


TORCHDISTILLER_NETWORKS = "TorchDistiller's PSPNet"

# A rule renames what begins with its pattern.
TORCHDISTILLER_RULES = [
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
INPLACE_ABN_EPSILON = 1e-5


def from_torchdistiller(
    net: Segmenter, state_dict: Mapping[str, Any], *, new_classifier: bool = False
) -> None:
    """Sets a network to weights of TorchDistiller, or of the project before it.

    That one is structure_knowledge_distillation. Their batch norm, InPlaceABN before version 1,
    scales by the magnitude of its weight plus 1e-5; the network gets that scale. The images that
    they read have blue first; the network has red first, as all of kdjax, and
    `kdjax.models.outputs.MEAN_ONLY` says the rest.

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
            weights[scale] = np.abs(weights[scale]) + np.float32(INPLACE_ABN_EPSILON)
    found = {
        renamed(name, TORCHDISTILLER_RULES, TORCHDISTILLER_NETWORKS): value
        for name, value in weights.items()
    }
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
