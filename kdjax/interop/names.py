"""mmsegmentation's names of the convolutional networks' modules.

A rule is a pattern that a module's whole path must match, with slashes between the names, and the
dotted name it becomes. The first rule that matches counts. A batch norm is always `norm` behind
its `conv`; mmsegmentation puts the two side by side in three ways, so rules come in pairs.
"""


def _pair(path: str, conv: str, norm: str) -> list[tuple[str, str]]:
    return [(f"{path}/conv", conv), (f"{path}/norm", norm)]


def _conv_module(path: str, name: str) -> list[tuple[str, str]]:
    """Rules for mmcv's ConvModule, which names the two `conv` and `bn`."""
    return _pair(path, f"{name}.conv", f"{name}.bn")


def _residual_block(path: str, name: str) -> list[tuple[str, str]]:
    groups = name.count("\\")
    return [
        *_pair(rf"{path}/conv(\d)", rf"{name}.conv\{groups + 1}", rf"{name}.bn\{groups + 1}"),
        *_pair(f"{path}/downsample", f"{name}.downsample.0", f"{name}.downsample.1"),
    ]


def _resnet() -> list[tuple[str, str]]:
    rules = _pair(r"backbone/conv(\d)", r"backbone.conv\1", r"backbone.bn\1")
    for index in range(3):
        conv, norm = f"backbone.stem.{3 * index}", f"backbone.stem.{3 * index + 1}"
        rules += _pair(f"backbone/stem/{index}", conv, norm)
    for index in range(4):
        rules += _residual_block(
            rf"backbone/stages/{index}/(\d+)", rf"backbone.layer{index + 1}.\1"
        )
    return rules


def _mobilenet() -> list[tuple[str, str]]:
    rules = _conv_module("backbone/entry", "backbone.conv1")
    for index in range(7):
        rules += _conv_module(
            rf"backbone/layers/{index}/(\d+)/convs/(\d+)", rf"backbone.layer{index + 1}.\1.conv.\2"
        )
    return rules


def _hrnet() -> list[tuple[str, str]]:
    rules = [
        *_residual_block(r"backbone/layer1/(\d+)", r"backbone.layer1.\1"),
        *_pair("backbone/first_branch", "backbone.transition1.0.0", "backbone.transition1.0.1"),
    ]
    for index in range(3):
        new = f"backbone.transition{index + 1}.{index + 1}.0"
        rules += _pair(f"backbone/new_branches/{index}", f"{new}.0", f"{new}.1")
        path, name = rf"backbone/stages/{index}/(\d+)", rf"backbone.stage{index + 2}.\1"
        rules += _residual_block(rf"{path}/branches/(\d+)/(\d+)", rf"{name}.branches.\2.\3")
        fuse = rf"{name}.fuse_layers.\2.\3"
        rules += _pair(rf"{path}/paths/(\d)/(\d)/project", rf"{fuse}.0", rf"{fuse}.1")
        rules += _pair(rf"{path}/paths/(\d)/(\d)/convs/(\d)", rf"{fuse}.\4.0", rf"{fuse}.\4.1")
    return rules


def _head(path: str, name: str) -> list[tuple[str, str]]:
    rules = [
        (f"{path}/classifier/conv", f"{name}.conv_seg"),
        *_conv_module(rf"{path}/convs/(\d+)", rf"{name}.convs.\1"),
        *_conv_module(f"{path}/merge", f"{name}.conv_cat"),
        *_conv_module(f"{path}/pyramid/bottleneck", f"{name}.bottleneck"),
        *_conv_module(f"{path}/pyramid/image_pool", f"{name}.image_pool.1"),
        *_conv_module(rf"{path}/pyramid/branches/(\d)", rf"{name}.psp_modules.\1.1"),
        *_conv_module(rf"{path}/pyramid/atrous/(\d)", rf"{name}.aspp_modules.\1"),
        *_conv_module(f"{path}/fine", f"{name}.c1_bottleneck"),
        *_conv_module(rf"{path}/laterals/(\d)", rf"{name}.lateral_convs.\1"),
        *_conv_module(rf"{path}/smoothers/(\d)", rf"{name}.fpn_convs.\1"),
        *_conv_module(f"{path}/fusion", f"{name}.fpn_bottleneck"),
    ]
    for ours, theirs in (("depthwise", "depthwise_conv"), ("pointwise", "pointwise_conv")):
        rules += _conv_module(
            rf"{path}/pyramid/atrous/(\d)/{ours}", rf"{name}.aspp_modules.\1.{theirs}"
        )
        rules += _conv_module(rf"{path}/decoder/(\d)/{ours}", rf"{name}.sep_bottleneck.\1.{theirs}")
    # torchvision's head has one convolution more than any of mmsegmentation's.
    rules += _conv_module(f"{path}/refine", f"{name}.refine")
    return rules


RULES = [
    *_resnet(),
    *_mobilenet(),
    *_hrnet(),
    *_head("head", "decode_head"),
    *_head("auxiliary_head", "auxiliary_head"),
]
