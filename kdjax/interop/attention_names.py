"""Names of SegFormer's and Swin's modules here and in mmsegmentation.

A rule is a regular expression that matches the whole slash-joined path of a module, and what its
matches expand to: the module's dotted name in mmsegmentation. A parameter's own name (`weight`,
`bias`) follows after a dot, except after a name that ends in an underscore, which it continues:
PyTorch's fused projection is no module there, its parameters are `in_proj_weight` and
`in_proj_bias`. A parameter whose name is no layer's (`relative_position_bias_table`) keeps it.
"""

from kdjax.models.swin import relative_position_index

_MIX_STAGE = r"backbone/stages/(\d+)"
_MIX_BLOCK = rf"{_MIX_STAGE}/blocks/(\d+)"
_MIX_NAME = r"backbone.layers.\1"
_MIX_BLOCK_NAME = rf"{_MIX_NAME}.1.\2"

_SWIN_BLOCK = r"backbone/stages/(\d+)/(\d+)"
_SWIN_BLOCK_NAME = r"backbone.stages.\1.blocks.\2"

RULES: list[tuple[str, str]] = [
    (rf"{_MIX_STAGE}/embedding/(projection|norm)", rf"{_MIX_NAME}.0.\2"),
    (rf"{_MIX_BLOCK}/(norm1|norm2)", rf"{_MIX_BLOCK_NAME}.\3"),
    (rf"{_MIX_BLOCK}/attention/in_projection", rf"{_MIX_BLOCK_NAME}.attn.attn.in_proj_"),
    (rf"{_MIX_BLOCK}/attention/out_projection", rf"{_MIX_BLOCK_NAME}.attn.attn.out_proj"),
    (rf"{_MIX_BLOCK}/attention/reduction/conv", rf"{_MIX_BLOCK_NAME}.attn.sr"),
    (rf"{_MIX_BLOCK}/attention/reduction/norm", rf"{_MIX_BLOCK_NAME}.attn.norm"),
    (rf"{_MIX_BLOCK}/ffn/expand", rf"{_MIX_BLOCK_NAME}.ffn.layers.0"),
    (rf"{_MIX_BLOCK}/ffn/depthwise", rf"{_MIX_BLOCK_NAME}.ffn.layers.1"),
    (rf"{_MIX_BLOCK}/ffn/contract", rf"{_MIX_BLOCK_NAME}.ffn.layers.4"),
    (rf"{_MIX_STAGE}/norm", rf"{_MIX_NAME}.2"),
    (r"head/projections/(\d+)/conv", r"decode_head.convs.\1.conv"),
    (r"head/projections/(\d+)/norm", r"decode_head.convs.\1.bn"),
    (r"head/fuse/conv", r"decode_head.fusion_conv.conv"),
    (r"head/fuse/norm", r"decode_head.fusion_conv.bn"),
    (r"backbone/embedding/(projection|norm)", r"backbone.patch_embed.\1"),
    (rf"{_SWIN_BLOCK}/(norm1|norm2)", rf"{_SWIN_BLOCK_NAME}.\3"),
    (rf"{_SWIN_BLOCK}/attention", rf"{_SWIN_BLOCK_NAME}.attn.w_msa"),
    (rf"{_SWIN_BLOCK}/attention/in_projection", rf"{_SWIN_BLOCK_NAME}.attn.w_msa.qkv"),
    (rf"{_SWIN_BLOCK}/attention/out_projection", rf"{_SWIN_BLOCK_NAME}.attn.w_msa.proj"),
    (rf"{_SWIN_BLOCK}/expand", rf"{_SWIN_BLOCK_NAME}.ffn.layers.0.0"),
    (rf"{_SWIN_BLOCK}/contract", rf"{_SWIN_BLOCK_NAME}.ffn.layers.1"),
    (r"backbone/mergings/(\d+)/(norm|reduction)", r"backbone.stages.\1.downsample.\2"),
    (r"backbone/norms/(\d+)", r"backbone.norm\1"),
]

# Buffers that mmsegmentation stores and that are constants here: the parameter beside which each
# stands, and what computes it. Import skips them, export adds them.
BUFFERS = {"relative_position_index": ("relative_position_bias_table", relative_position_index)}
