"""SegFormer as its authors wrote it (github.com/NVlabs/SegFormer), also without its head.

They published networks for mmsegmentation 0.11, which had no SegFormer of its own, and backbones
that classify images (`mit_b0.pth`). CIRKD took their code over. The names are those of that code;
no published file was at hand.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from kdjax.errors import UserError
from kdjax.interop.mmseg import from_mmseg, weights_of
from kdjax.interop.renaming import renamed, reversed_stages, without_bias
from kdjax.models import Segmenter

PROJECT = "SegFormer as its authors wrote it"
# Where mmsegmentation puts the parts; CIRKD has the network as one.
PARTS = r"^(backbone|decode_head)\."
# mmsegmentation gives every head this classifier, and this one has another.
UNUSED = "conv_seg."
# Linear maps of pixels there that are 1x1 convolutions in mmsegmentation.
CONVOLUTIONS = r".*\.mlp\.fc[12]\.weight|linear_c\d\.proj\.weight"

_BLOCK = r"block(\d)\.(\d+)"
_BLOCK_NAME = r"backbone.layers.\1.1.\2"
# A rule renames what begins with its pattern.
RULES = [
    (r"patch_embed(\d)\.proj\.", r"backbone.layers.\1.0.projection."),
    (r"patch_embed(\d)\.norm\.", r"backbone.layers.\1.0.norm."),
    (rf"{_BLOCK}\.norm([12])\.", rf"{_BLOCK_NAME}.norm\3."),
    (rf"{_BLOCK}\.attn\.in_proj_", rf"{_BLOCK_NAME}.attn.attn.in_proj_"),
    (rf"{_BLOCK}\.attn\.proj\.", rf"{_BLOCK_NAME}.attn.attn.out_proj."),
    (rf"{_BLOCK}\.attn\.(sr|norm)\.", rf"{_BLOCK_NAME}.attn.\3."),
    (rf"{_BLOCK}\.mlp\.fc1\.", rf"{_BLOCK_NAME}.ffn.layers.0."),
    (rf"{_BLOCK}\.mlp\.dwconv\.dwconv\.", rf"{_BLOCK_NAME}.ffn.layers.1."),
    (rf"{_BLOCK}\.mlp\.fc2\.", rf"{_BLOCK_NAME}.ffn.layers.4."),
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
    weights = segformer_to_mmseg(weights_of(state_dict))
    from_mmseg(net, weights, new_classifier=new_classifier)


def segformer_to_mmseg(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
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
    for name, array in _fused(without_bias(weights, "linear_fuse.0", "linear_fuse.1")).items():
        if re.fullmatch(CONVOLUTIONS, name):
            array = array[..., None, None]
        if name in ("linear_fuse.0.weight", "linear_fuse.conv.weight"):
            array = reversed_stages(array)
        # Stages count from 1 there.
        counted = re.sub(
            r"^(patch_embed|block|norm|linear_c)(\d)", lambda m: f"{m[1]}{int(m[2]) - 1}", name
        )
        found[renamed(counted, RULES, PROJECT)] = array
    return found


def _fused(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
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
