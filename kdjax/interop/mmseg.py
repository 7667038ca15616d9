"""Weights from and to mmsegmentation: the same network under other names and layouts.

A rule is a regular expression that matches the whole slash-joined path of a module, and what its
matches expand to: the module's dotted name in mmsegmentation. The first rule that matches counts.
A parameter's own name (`weight`, `bias`) follows after a dot, except after a name that ends in an
underscore, which it continues: PyTorch's fused projection is no module there, its parameters are
`in_proj_weight` and `in_proj_bias`. A parameter whose name is no layer's
(`relative_position_bias_table`) keeps it.
"""

import os
import re
from collections.abc import Mapping
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kdjax.interop.files import unwrapped
from kdjax.models import NNXNetwork, Segmenter, serialization
from kdjax.models.swin import relative_position_index
from kdjax.utils.errors import UserError

# What mmsegmentation's TIMMBackbone puts before timm's names.
TIMM = "timm_model."


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


def _efficientnet_lite() -> list[tuple[str, str]]:
    """Rules for timm's names, inside the module in which mmsegmentation wraps its networks."""
    name, path = f"backbone.{TIMM}", "backbone/blocks"
    rules = _pair("backbone/conv_stem", f"{name}conv_stem", f"{name}bn1")
    # The first layer does not expand.
    for layers, parts in (("0", ("dw", "pw")), ("[1-6]", ("pw", "dw", "pwl"))):
        for index, part in enumerate(parts):
            block = rf"{name}blocks.\1.\2"
            rules += _pair(
                rf"{path}/({layers})/(\d+)/convs/{index}",
                f"{block}.conv_{part}",
                f"{block}.bn{index + 1}",
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
        *_conv_module(f"{path}/reduce", f"{name}.aspp_conv"),
        (f"{path}/gate", f"{name}.image_pool.1.conv"),
        (f"{path}/enter", f"{name}.conv_up_input"),
        (rf"{path}/sides/(\d)", rf"{name}.convs.conv\1"),
        *_conv_module(rf"{path}/joins/(\d)", rf"{name}.conv_ups.conv_up\1"),
    ]
    for part, mmseg_part in (("depthwise", "depthwise_conv"), ("pointwise", "pointwise_conv")):
        rules += _conv_module(
            rf"{path}/pyramid/atrous/(\d)/{part}", rf"{name}.aspp_modules.\1.{mmseg_part}"
        )
        rules += _conv_module(
            rf"{path}/decoder/(\d)/{part}", rf"{name}.sep_bottleneck.\1.{mmseg_part}"
        )
    # torchvision's head has one convolution more than any of mmsegmentation's.
    rules += _conv_module(f"{path}/refine", f"{name}.refine")
    return rules


CONVOLUTION_RULES = [
    *_resnet(),
    *_mobilenet(),
    *_efficientnet_lite(),
    *_hrnet(),
    *_head("head", "decode_head"),
    *_head("auxiliary_head", "auxiliary_head"),
]


_MIX_STAGE = r"backbone/stages/(\d+)"
_MIX_BLOCK = rf"{_MIX_STAGE}/blocks/(\d+)"
_MIX_NAME = r"backbone.layers.\1"
_MIX_BLOCK_NAME = rf"{_MIX_NAME}.1.\2"

_SWIN_BLOCK = r"backbone/stages/(\d+)/(\d+)"
_SWIN_BLOCK_NAME = r"backbone.stages.\1.blocks.\2"

ATTENTION_RULES: list[tuple[str, str]] = [
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

RULES = [*CONVOLUTION_RULES, *ATTENTION_RULES]

# What PyTorch calls our leaves; others keep their name.
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
CLASSIFIERS = ("decode_head.conv_seg.", "auxiliary_head.conv_seg.")
# Of a checkpoint of another network, everything is wrong; so many names of each kind say it.
SHOWN = 20


# A leaf's path in the network, and the variable there.
Leaf = tuple[tuple[Any, ...], nnx.Variable]


def from_mmseg(
    net: Segmenter, state_dict: Mapping[str, Any], *, new_classifier: bool = False
) -> None:
    """Sets the parameters and running statistics of a network to those of mmsegmentation's.

    Args:
      net: a network of `kdjax.models`; also an abstract one, of `nnx.eval_shape`.
      state_dict: NumPy arrays (or what NumPy can read) by name, or a checkpoint that holds them as
        "state_dict"; names may begin with "module.", and of a distiller's file, the student is
        taken ("student.", "architecture."). Half precision becomes float32.
      new_classifier: leave the classifiers as they are where their number of classes differs.

    Raises:
      UserError: listing every name that is missing or unexpected and every wrong shape; the
        network is as it was before.
    """
    given, wanted = weights_of(state_dict), leaves(net)
    if new_classifier:
        for name in [name for name in wanted if name.startswith(CLASSIFIERS) and name in given]:
            if given[name].shape[0] != torch_shape(wanted[name])[0]:
                del wanted[name], given[name]
    assign(net, wanted, given)


def from_backbone(net: Segmenter, state_dict: Mapping[str, Any]) -> None:
    """Sets the backbone alone, such as one that was trained on ImageNet; the heads stay.

    Args:
      net: a network of `kdjax.models`.
      state_dict: arrays as for `from_mmseg`, under the backbone's names without "backbone."; what
        classified images (`fc.`) is left out.

    Raises:
      UserError: as `from_mmseg`.
    """
    wanted = {name: leaf for name, leaf in leaves(net).items() if name.startswith("backbone.")}
    weights = weights_of(state_dict).items()
    given = {f"backbone.{name}": value for name, value in weights if not name.startswith("fc.")}
    assign(net, wanted, given)


class Loaded(Protocol):
    """What `kdjax.load` returns."""

    network: Any
    variables: Any


def module_of(source: nnx.Module | Loaded | str | os.PathLike[str]) -> Segmenter:
    """Returns the module of a network of kdjax's own.

    Args:
      source: the module itself, what `kdjax.load` returns, or the path of a network checkpoint or
        of a run.

    Raises:
      UserError: when there is no network, or it is one of the user's own.
    """
    module: Any = source
    if not isinstance(source, nnx.Module):
        if isinstance(source, str | os.PathLike):
            network, variables, _ = serialization.load(source)
        else:
            network, variables = source.network, source.variables
        module = network.module(variables) if isinstance(network, NNXNetwork) else network
    # Networks of kdjax.models, and their parts.
    if not isinstance(module, nnx.Module) or not hasattr(module, "backbone"):
        raise UserError(
            f"a {type(module).__name__} has no names in PyTorch that kdjax knows; the networks of "
            "kdjax.models have"
        )
    return cast(Segmenter, module)


def to_mmseg(net: nnx.Module | Loaded | str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Returns parameters and running statistics under mmsegmentation's names and layouts.

    The exact inverse of `from_mmseg`. PyTorch's `load_state_dict` itself supplies the counters
    (`num_batches_tracked`) that are not in it.

        weights = interop.to_mmseg("runs/cwd")
        model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})

    Args:
      net: a network of `kdjax.models`, what `kdjax.load` returns, or the path of a network
        checkpoint or of a run.

    Raises:
      UserError: when there is no network, or it is one of the user's own.
    """
    net = module_of(net)
    weights = {name: torch_array(leaf) for name, leaf in leaves(net).items()}
    for buffer, (parameter, compute) in BUFFERS.items():
        for name in [name for name in weights if name.endswith(parameter)]:
            weights[name.removesuffix(parameter) + buffer] = compute()
    return weights


def leaves(net: Segmenter) -> dict[str, Leaf]:
    """Returns the parameters and running statistics of a network by mmsegmentation's name."""
    state = nnx.state(net, nnx.Any(nnx.Param, nnx.BatchStat))
    return {_torch_name(path): (path, variable) for path, variable in nnx.to_flat_state(state)}


def torch_shape(leaf: Leaf) -> tuple[int, ...]:
    """Returns the shape that a leaf has in PyTorch."""
    path, variable = leaf
    return tuple(variable.shape[axis] for axis in _layout(str(path[-1]), len(variable.shape)))


def torch_array(leaf: Leaf) -> np.ndarray:
    """Returns a leaf as PyTorch lays it out."""
    path, variable = leaf
    layout = _layout(str(path[-1]), len(variable.shape))
    # On the host, where nothing is compiled for each shape.
    return np.ascontiguousarray(np.asarray(variable[...]).transpose(layout))


def weights_of(state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the arrays of a checkpoint by name, in float32, without what is none of ours.

    Raises:
      UserError: where something in it is no array of numbers with a point. Whole numbers are those
        of quantized weights, whose scale is not known.
    """
    inner = state_dict.get("state_dict", state_dict)
    arrays = {}
    for name, own_name in unwrapped(inner).items():
        if name.endswith(("num_batches_tracked", *BUFFERS)):
            continue
        array = np.asarray(inner[name])
        if array.dtype == object or not jnp.issubdtype(array.dtype, jnp.floating):
            raise UserError(
                f'the weights hold "{name}", which is no array of floating-point numbers '
                f"({array.dtype})"
            )
        with np.errstate(over="ignore"):  # `assign` finds what becomes infinite
            arrays[own_name] = array.astype(np.float32, copy=False)
    return arrays


def assign(net: Segmenter, wanted: Mapping[str, Leaf], given: Mapping[str, np.ndarray]) -> None:
    """Sets the leaves `wanted` of a network to the arrays `given`, all or none.

    Raises:
      UserError: listing every name that is missing or unexpected and every wrong shape; or the
        first weights that are not finite.
    """
    shapes = {name: torch_shape(leaf) for name, leaf in wanted.items()}
    problems = {
        "missing": [name for name in wanted if name not in given],
        "unexpected": [name for name in given if name not in wanted],
        "of another shape": [
            f"{name} {given[name].shape} instead of {shape}"
            for name, shape in shapes.items()
            if name in given and given[name].shape != shape
        ],
    }
    if any(problems.values()):
        texts = [f"{kind}: {_listed(found)}" for kind, found in problems.items() if found]
        raise UserError(f"the weights are not this network's; {'; '.join(texts)}")
    for name in wanted:
        bad = np.sum(~np.isfinite(given[name]))
        if bad:
            raise UserError(
                f'the weights are damaged: {bad} of the {given[name].size} numbers of "{name}" are '
                "NaN or infinite"
            )
    state = []
    for name, (path, variable) in wanted.items():
        layout = np.argsort(_layout(str(path[-1]), given[name].ndim))
        # A copy, as the device may go on reading the array; jnp.asarray compiles for each shape.
        array = np.array(given[name].transpose(layout), order="C")
        state.append((path, variable.replace(jax.device_put(array))))
    nnx.update(net, nnx.from_flat_state(state))


def _torch_name(path: tuple[Any, ...]) -> str:
    module, leaf = "/".join(map(str, path[:-1])), str(path[-1])
    for pattern, replacement in RULES:
        match = re.fullmatch(pattern, module)
        if match:
            name = match.expand(replacement)
            # PyTorch's fused projections are no modules: their weight is `in_proj_weight`.
            return f"{name}{'' if name.endswith('_') else '.'}{LEAVES.get(leaf, leaf)}"
    raise LookupError(f"no rule of kdjax.interop names the module {module}")


def _layout(leaf: str, dimensions: int) -> tuple[int, ...]:
    """Returns which of our axes PyTorch's are: HWIO becomes OIHW, and IO becomes OI."""
    if leaf == "kernel":
        return {4: (3, 2, 0, 1), 2: (1, 0)}[dimensions]
    return tuple(range(dimensions))


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
