"""Names of HuggingFace's SegFormer turned into mmsegmentation's."""

import re
from collections.abc import Mapping

import numpy as np

from kdjax.errors import UserError
from kdjax.interop.renaming import renamed, reversed_stages

_BLOCK = r"segformer\.encoder\.block\.(\d+)\.(\d+)"
_BLOCK_NAME = r"backbone.layers.\1.1.\2"

# A rule renames what begins with its pattern.
RULES = [
    (r"segformer\.encoder\.patch_embeddings\.(\d+)\.proj\.", r"backbone.layers.\1.0.projection."),
    (r"segformer\.encoder\.patch_embeddings\.(\d+)\.layer_norm\.", r"backbone.layers.\1.0.norm."),
    (rf"{_BLOCK}\.layer_norm_(\d)\.", rf"{_BLOCK_NAME}.norm\3."),
    (rf"{_BLOCK}\.attention\.self\.in_proj_", rf"{_BLOCK_NAME}.attn.attn.in_proj_"),
    (rf"{_BLOCK}\.attention\.self\.sr\.", rf"{_BLOCK_NAME}.attn.sr."),
    (rf"{_BLOCK}\.attention\.self\.layer_norm\.", rf"{_BLOCK_NAME}.attn.norm."),
    (rf"{_BLOCK}\.attention\.output\.dense\.", rf"{_BLOCK_NAME}.attn.attn.out_proj."),
    (rf"{_BLOCK}\.mlp\.dense1\.", rf"{_BLOCK_NAME}.ffn.layers.0."),
    (rf"{_BLOCK}\.mlp\.dwconv\.dwconv\.", rf"{_BLOCK_NAME}.ffn.layers.1."),
    (rf"{_BLOCK}\.mlp\.dense2\.", rf"{_BLOCK_NAME}.ffn.layers.4."),
    (r"segformer\.encoder\.layer_norm\.(\d+)\.", r"backbone.layers.\1.2."),
    (r"decode_head\.linear_c\.(\d+)\.proj\.", r"decode_head.convs.\1.conv."),
    (r"decode_head\.linear_fuse\.", "decode_head.fusion_conv.conv."),
    (r"decode_head\.batch_norm\.", "decode_head.fusion_conv.bn."),
    (r"decode_head\.classifier\.", "decode_head.conv_seg."),
]
# Linear maps of pixels there that are 1x1 convolutions in mmsegmentation.
CONVOLUTIONS = r".*\.(mlp\.dense[12]|linear_c\.\d+\.proj)\.weight"


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
    for name, array in _fused(state_dict).items():
        if re.fullmatch(CONVOLUTIONS, name):
            array = array[..., None, None]
        if name == "decode_head.linear_fuse.weight":
            array = reversed_stages(array)
        weights[renamed(name, RULES, "HuggingFace's SegFormer")] = array
    return weights


def _fused(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
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
