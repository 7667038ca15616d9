"""SegFormer's weights as its authors (github.com/NVlabs/SegFormer) and HuggingFace name them.

The authors published networks for mmsegmentation 0.11, which had no SegFormer of its own, and
backbones that classify images (`mit_b0.pth`). CIRKD took their code over. The names are those of
that code; no published file was at hand.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from kdjax.errors import UserError
from kdjax.interop.files import renamed, reversed_stages, without_bias
from kdjax.interop.mmseg import from_mmseg, weights_of
from kdjax.models import Segmenter

NVLABS_NETWORKS = "SegFormer as its authors wrote it"
# Where mmsegmentation puts the parts; CIRKD has the network as one.
PARTS = r"^(backbone|decode_head)\."
# mmsegmentation gives every head this classifier, and this one has another.
UNUSED = "conv_seg."
# Linear maps of pixels there that are 1x1 convolutions in mmsegmentation.
NVLABS_CONVOLUTIONS = r".*\.mlp\.fc[12]\.weight|linear_c\d\.proj\.weight"

_NVLABS_BLOCK = r"block(\d)\.(\d+)"
_BLOCK_NAME = r"backbone.layers.\1.1.\2"
# A rule renames what begins with its pattern.
NVLABS_RULES = [
    (r"patch_embed(\d)\.proj\.", r"backbone.layers.\1.0.projection."),
    (r"patch_embed(\d)\.norm\.", r"backbone.layers.\1.0.norm."),
    (rf"{_NVLABS_BLOCK}\.norm([12])\.", rf"{_BLOCK_NAME}.norm\3."),
    (rf"{_NVLABS_BLOCK}\.attn\.in_proj_", rf"{_BLOCK_NAME}.attn.attn.in_proj_"),
    (rf"{_NVLABS_BLOCK}\.attn\.proj\.", rf"{_BLOCK_NAME}.attn.attn.out_proj."),
    (rf"{_NVLABS_BLOCK}\.attn\.(sr|norm)\.", rf"{_BLOCK_NAME}.attn.\3."),
    (rf"{_NVLABS_BLOCK}\.mlp\.fc1\.", rf"{_BLOCK_NAME}.ffn.layers.0."),
    (rf"{_NVLABS_BLOCK}\.mlp\.dwconv\.dwconv\.", rf"{_BLOCK_NAME}.ffn.layers.1."),
    (rf"{_NVLABS_BLOCK}\.mlp\.fc2\.", rf"{_BLOCK_NAME}.ffn.layers.4."),
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


_HUGGINGFACE_BLOCK = r"segformer\.encoder\.block\.(\d+)\.(\d+)"


# A rule renames what begins with its pattern.
HUGGINGFACE_RULES = [
    (r"segformer\.encoder\.patch_embeddings\.(\d+)\.proj\.", r"backbone.layers.\1.0.projection."),
    (r"segformer\.encoder\.patch_embeddings\.(\d+)\.layer_norm\.", r"backbone.layers.\1.0.norm."),
    (rf"{_HUGGINGFACE_BLOCK}\.layer_norm_(\d)\.", rf"{_BLOCK_NAME}.norm\3."),
    (rf"{_HUGGINGFACE_BLOCK}\.attention\.self\.in_proj_", rf"{_BLOCK_NAME}.attn.attn.in_proj_"),
    (rf"{_HUGGINGFACE_BLOCK}\.attention\.self\.sr\.", rf"{_BLOCK_NAME}.attn.sr."),
    (rf"{_HUGGINGFACE_BLOCK}\.attention\.self\.layer_norm\.", rf"{_BLOCK_NAME}.attn.norm."),
    (rf"{_HUGGINGFACE_BLOCK}\.attention\.output\.dense\.", rf"{_BLOCK_NAME}.attn.attn.out_proj."),
    (rf"{_HUGGINGFACE_BLOCK}\.mlp\.dense1\.", rf"{_BLOCK_NAME}.ffn.layers.0."),
    (rf"{_HUGGINGFACE_BLOCK}\.mlp\.dwconv\.dwconv\.", rf"{_BLOCK_NAME}.ffn.layers.1."),
    (rf"{_HUGGINGFACE_BLOCK}\.mlp\.dense2\.", rf"{_BLOCK_NAME}.ffn.layers.4."),
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
