"""Weights of kdjax's networks under mmsegmentation's names and in PyTorch's layouts.

A rule of `RULES` is a regular expression that matches the whole slash-joined path of a module, and
the template of the module's dotted name in mmsegmentation. The first rule that matches counts. The
parameter's own name (`weight`, `bias`) follows after a dot. If the module's name ends in an
underscore, there is no dot: PyTorch's fused projection is not a module, and its parameters are
`in_proj_weight` and `in_proj_bias`.
"""

import os
import re
from collections.abc import Mapping
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kdjax.models import FeatureExtractor, NNXNetwork, Segmenter, serialization
from kdjax.models.efficientnet_lite import EfficientNetLite
from kdjax.models.resnet import ResNet
from kdjax.models.swin import relative_position_index
from kdjax.utils.errors import UserError

# The prefix that mmsegmentation's TIMMBackbone adds to timm's names.
TIMM = "timm_model."

Rules = list[tuple[str, str]]


def _conv_norm(path: str, conv: str, norm: str) -> Rules:
    return [(f"{path}/conv", conv), (f"{path}/norm", norm)]


def _conv_module(path: str, name: str) -> Rules:
    """Returns the rules for mmcv's ConvModule, which calls its parts `conv` and `bn`."""
    return _conv_norm(path, f"{name}.conv", f"{name}.bn")


def _residual_block(path: str, name: str) -> Rules:
    group = name.count("\\") + 1  # of the convolution's number
    return [
        *_conv_norm(rf"{path}/conv(\d)", rf"{name}.conv\{group}", rf"{name}.bn\{group}"),
        *_conv_norm(f"{path}/downsample", f"{name}.downsample.0", f"{name}.downsample.1"),
    ]


def _resnet() -> Rules:
    rules = _conv_norm(r"backbone/conv(\d)", r"backbone.conv\1", r"backbone.bn\1")
    for i in range(3):
        conv, norm = f"backbone.stem.{3 * i}", f"backbone.stem.{3 * i + 1}"
        rules += _conv_norm(f"backbone/stem/{i}", conv, norm)
    for i in range(4):
        rules += _residual_block(rf"backbone/stages/{i}/(\d+)", rf"backbone.layer{i + 1}.\1")
    return rules


def _mobilenet() -> Rules:
    rules = _conv_module("backbone/entry", "backbone.conv1")
    for i in range(7):
        name = rf"backbone.layer{i + 1}.\1.conv.\2"
        rules += _conv_module(rf"backbone/layers/{i}/(\d+)/convs/(\d+)", name)
    return rules


def _efficientnet_lite() -> Rules:
    name = f"backbone.{TIMM}"
    rules = _conv_norm("backbone/conv_stem", f"{name}conv_stem", f"{name}bn1")
    # The first layer has no expanding convolution.
    for layers, parts in (("0", ("dw", "pw")), ("[1-6]", ("pw", "dw", "pwl"))):
        for i, part in enumerate(parts):
            path, block = rf"backbone/blocks/({layers})/(\d+)/convs/{i}", rf"{name}blocks.\1.\2"
            rules += _conv_norm(path, f"{block}.conv_{part}", f"{block}.bn{i + 1}")
    return rules


def _hrnet() -> Rules:
    rules = [
        *_residual_block(r"backbone/layer1/(\d+)", r"backbone.layer1.\1"),
        *_conv_norm("backbone/first_branch", *(f"backbone.transition1.0.{i}" for i in (0, 1))),
    ]
    for i in range(3):
        new = f"backbone.transition{i + 1}.{i + 1}.0"
        rules += _conv_norm(f"backbone/new_branches/{i}", f"{new}.0", f"{new}.1")
        path, name = rf"backbone/stages/{i}/(\d+)", rf"backbone.stage{i + 2}.\1"
        rules += _residual_block(rf"{path}/branches/(\d+)/(\d+)", rf"{name}.branches.\2.\3")
        fuse = rf"{name}.fuse_layers.\2.\3"
        rules += _conv_norm(rf"{path}/paths/(\d)/(\d)/project", f"{fuse}.0", f"{fuse}.1")
        rules += _conv_norm(rf"{path}/paths/(\d)/(\d)/convs/(\d)", rf"{fuse}.\4.0", rf"{fuse}.\4.1")
    return rules


def _transformers() -> Rules:
    stage, block = r"backbone/stages/(\d+)", r"backbone/stages/(\d+)/blocks/(\d+)"
    name, block_name = r"backbone.layers.\1", r"backbone.layers.\1.1.\2"
    swin, swin_name = r"backbone/stages/(\d+)/(\d+)", r"backbone.stages.\1.blocks.\2"
    return [
        (rf"{stage}/embedding/(projection|norm)", rf"{name}.0.\2"),
        (rf"{block}/(norm1|norm2)", rf"{block_name}.\3"),
        (rf"{block}/attention/in_projection", rf"{block_name}.attn.attn.in_proj_"),
        (rf"{block}/attention/out_projection", rf"{block_name}.attn.attn.out_proj"),
        (rf"{block}/attention/reduction/conv", rf"{block_name}.attn.sr"),
        (rf"{block}/attention/reduction/norm", rf"{block_name}.attn.norm"),
        (rf"{block}/ffn/expand", rf"{block_name}.ffn.layers.0"),
        (rf"{block}/ffn/depthwise", rf"{block_name}.ffn.layers.1"),
        (rf"{block}/ffn/contract", rf"{block_name}.ffn.layers.4"),
        (rf"{stage}/norm", rf"{name}.2"),
        (r"backbone/embedding/(projection|norm)", r"backbone.patch_embed.\1"),
        (rf"{swin}/(norm1|norm2)", rf"{swin_name}.\3"),
        (rf"{swin}/attention", rf"{swin_name}.attn.w_msa"),
        (rf"{swin}/attention/in_projection", rf"{swin_name}.attn.w_msa.qkv"),
        (rf"{swin}/attention/out_projection", rf"{swin_name}.attn.w_msa.proj"),
        (rf"{swin}/expand", rf"{swin_name}.ffn.layers.0.0"),
        (rf"{swin}/contract", rf"{swin_name}.ffn.layers.1"),
        (r"backbone/mergings/(\d+)/(norm|reduction)", r"backbone.stages.\1.downsample.\2"),
        (r"backbone/norms/(\d+)", r"backbone.norm\1"),
    ]


def _vision_transformer() -> Rules:
    """Returns the rules for DINOv2 and DINOv3, with the names of DINOv2's authors."""
    block, name = r"backbone/blocks/(\d+)", r"backbone.blocks.\1"
    return [
        ("backbone", "backbone"),
        ("backbone/embedding", "backbone.patch_embed.proj"),
        ("backbone/norm", "backbone.norm"),
        (rf"{block}/(norm1|norm2)", rf"{name}.\2"),
        (rf"{block}/attention/in_projection", rf"{name}.attn.qkv"),
        (rf"{block}/attention/out_projection", rf"{name}.attn.proj"),
        (rf"{block}/scale([12])", rf"{name}.ls\2"),
        (rf"{block}/ffn/expand", rf"{name}.mlp.fc1"),
        (rf"{block}/ffn/contract", rf"{name}.mlp.fc2"),
    ]


HEAD_CONV_MODULES = {
    r"convs/(\d+)": r"convs.\1",
    "merge": "conv_cat",
    "pyramid/bottleneck": "bottleneck",
    "pyramid/image_pool": "image_pool.1",
    r"pyramid/branches/(\d)": r"psp_modules.\1.1",
    r"pyramid/atrous/(\d)": r"aspp_modules.\1",
    r"pyramid/atrous/(\d)/(depth|point)wise": r"aspp_modules.\1.\2wise_conv",
    r"decoder/(\d)/(depth|point)wise": r"sep_bottleneck.\1.\2wise_conv",
    "fine": "c1_bottleneck",
    r"laterals/(\d)": r"lateral_convs.\1",
    r"smoothers/(\d)": r"fpn_convs.\1",
    "fusion": "fpn_bottleneck",
    "reduce": "aspp_conv",
    r"joins/(\d)": r"conv_ups.conv_up\1",
    r"projections/(\d+)": r"convs.\1",
    "fuse": "fusion_conv",
    # torchvision's DeepLabV3 has one convolution more than mmsegmentation's.
    "refine": "refine",
}
HEAD_CONVS = {
    "classifier/conv": "conv_seg",
    "gate": "image_pool.1.conv",
    "enter": "conv_up_input",
    r"sides/(\d)": r"convs.conv\1",
}


def _head(path: str, name: str) -> Rules:
    rules = [(f"{path}/{part}", f"{name}.{target}") for part, target in HEAD_CONVS.items()]
    for part, target in HEAD_CONV_MODULES.items():
        rules += _conv_module(f"{path}/{part}", f"{name}.{target}")
    return rules


RULES: Rules = [
    *_resnet(),
    *_mobilenet(),
    *_efficientnet_lite(),
    *_hrnet(),
    *_transformers(),
    *_vision_transformer(),
    *_head("head", "decode_head"),
    *_head("auxiliary_head", "auxiliary_head"),
]
# The names of our parameters in PyTorch; other names stay the same.
PARAMETERS = {
    "kernel": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
# Constants that mmsegmentation stores as buffers: the parameter of the same module, and a function
# that computes the constant.
BUFFERS = {"relative_position_index": ("relative_position_bias_table", relative_position_index)}
CLASSIFIERS = ("decode_head.conv_seg.", "auxiliary_head.conv_seg.")
# The kernels that read the images.
FIRST_KERNELS = (
    "backbone.stem.0.weight",
    "backbone.conv1.weight",
    "backbone.conv1.conv.weight",
    f"backbone.{TIMM}conv_stem.weight",
    "backbone.layers.0.0.projection.weight",
    "backbone.patch_embed.projection.weight",
)
MAX_NAMES = 20  # in a message
# PyTorch's data-parallel wrapper.
PARALLEL = "module."
# The prefixes of the student in the file of a distiller, which also holds the teacher and the
# losses: of mmrazor before 1.0, mmrazor, and mmsegmentation-distiller.
STUDENTS = ("architecture.model.", "architecture.", "student.")

# The path of a parameter or running statistic in the network, and its variable.
Leaf = tuple[tuple[Any, ...], nnx.Variable]


class Loaded(Protocol):
    """The result of `kdjax.load`."""

    network: Any
    variables: Any


def from_mmseg(
    net: Segmenter, state_dict: Mapping[str, Any], *, new_classifier: bool = False
) -> None:
    """Sets the parameters and running statistics of a network to mmsegmentation's weights.

    Args:
      net: a network of `kdjax.models`; it may be abstract, from `nnx.eval_shape`.
      state_dict: arrays by name, or a checkpoint that holds them as "state_dict". Names may begin
        with "module.". From the file of a distiller, the student is taken. Half precision becomes
        float32.
      new_classifier: keep the network's classifiers if the number of classes differs.

    Raises:
      UserError: if names are missing or unexpected, or shapes differ. The message lists all of
        them, and the network stays as it was.
    """
    given, wanted = floats_of(state_dict), leaves(net)
    if new_classifier:
        for name in [name for name in wanted if name.startswith(CLASSIFIERS) and name in given]:
            if given[name].shape[0] != torch_shape(wanted[name])[0]:
                del wanted[name], given[name]
    assign(net, wanted, given)


def to_mmseg(net: nnx.Module | Loaded | str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Returns parameters and running statistics under mmsegmentation's names and layouts.

    The exact inverse of `from_mmseg`. `load_state_dict` of PyTorch adds the counters
    (`num_batches_tracked`) by itself.

        weights = interop.to_mmseg("runs/cwd")
        model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})

    Args:
      net: a network of `kdjax.models`, the result of `kdjax.load`, or the path of a network
        checkpoint or of a run.

    Raises:
      UserError: if there is no network, or it is a user's own.
    """
    weights = {name: torch_array(leaf) for name, leaf in leaves(module_of(net)).items()}
    for buffer, (parameter, compute) in BUFFERS.items():
        for name in [name for name in weights if name.endswith(parameter)]:
            weights[name.removesuffix(parameter) + buffer] = compute()
    return weights


def to_timm(net: nnx.Module | Loaded | str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Returns the backbone of a network under timm's names.

    timm's `create_model(name, features_only=True)` loads them. EfficientNet-Lite is
    `tf_efficientnet_lite0` to `4`. `efficientnet_lite0` has the same names, but other padding, and
    computes other features. ResNets with the plain stem (`pspnet_r18b`) are `resnet18` to
    `resnet101`; `pspnet_r50` with the deep stem is `resnet50c`.

    Args:
      net: as in `to_mmseg`.

    Raises:
      UserError: if there is no network, or its backbone is neither a ResNet nor EfficientNet-Lite.
    """
    net = module_of(net)
    if not isinstance(net.backbone, (ResNet, EfficientNetLite)):
        raise UserError(
            f"cannot write a {type(net.backbone).__name__} under timm's names, only a ResNet or "
            "EfficientNet-Lite"
        )
    weights = {}
    for name, leaf in leaves(net).items():
        if name.startswith("backbone."):
            name = name.removeprefix("backbone.").removeprefix(TIMM)
            name = re.sub(r"^stem\.7\.", "bn1.", name)
            weights[re.sub(r"^stem\.(\d)\.", r"conv1.\1.", name)] = torch_array(leaf)
    return weights


def red_first(net: Segmenter | FeatureExtractor) -> None:
    """Reverses the input channels of the first convolution, in place.

    Raises:
      UserError: if the network has none of the known first convolutions.
    """
    found = leaves(net)
    for name in FIRST_KERNELS:
        if name in found:
            _, kernel = found[name]
            kernel[...] = kernel[...][:, :, ::-1]
            return
    raise UserError("kdjax does not know which convolution of this network reads the images")


def module_of(source: nnx.Module | Loaded | str | os.PathLike[str]) -> Segmenter:
    """Returns the module of a network of kdjax, given as in `to_mmseg`.

    Raises:
      UserError: if there is no network, or it is a user's own.
    """
    module: Any = source
    if not isinstance(source, nnx.Module):
        if isinstance(source, str | os.PathLike):
            network, variables, _ = serialization.load(source)
        else:
            network, variables = source.network, source.variables
        module = network.module(variables) if isinstance(network, NNXNetwork) else network
    # The networks of kdjax.models, and tests of their parts.
    if not isinstance(module, nnx.Module) or not hasattr(module, "backbone"):
        raise UserError(
            f"kdjax knows no PyTorch names for a {type(module).__name__}, only for the networks of "
            "kdjax.models"
        )
    return cast(Segmenter, module)


def leaves(net: nnx.Module) -> dict[str, Leaf]:
    """Returns the parameters and running statistics of a network by mmsegmentation's names."""
    state = nnx.state(net, nnx.Any(nnx.Param, nnx.BatchStat))
    return {_torch_name(path): (path, variable) for path, variable in nnx.to_flat_state(state)}


def torch_shape(leaf: Leaf) -> tuple[int, ...]:
    """Returns the shape of a leaf in PyTorch."""
    path, variable = leaf
    return tuple(variable.shape[axis] for axis in _layout(str(path[-1]), len(variable.shape)))


def torch_array(leaf: Leaf) -> np.ndarray:
    """Returns the values of a leaf in PyTorch's layout."""
    path, variable = leaf
    layout = _layout(str(path[-1]), len(variable.shape))
    # NumPy compiles nothing for each shape.
    return np.ascontiguousarray(np.asarray(variable[...]).transpose(layout))


def unwrapped(names: Mapping[str, Any] | list[str]) -> dict[str, str]:
    """Returns the network's own name of each weight by the name in the file.

    From the names of a distiller's file, returns only those of the student.
    """
    own = {name: name.removeprefix(PARALLEL) for name in names}
    for prefix in STUDENTS:
        found = {
            name: rest.removeprefix(prefix) for name, rest in own.items() if rest.startswith(prefix)
        }
        if found:
            return found
    return own


def floats_of(state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the weights of a checkpoint by name, in float32, without counters and buffers.

    Raises:
      UserError: if a weight is not a floating-point array. Integers come from quantization, and
        their scale is unknown.
    """
    inner = state_dict.get("state_dict", state_dict)
    arrays = {}
    for name, own_name in unwrapped(inner).items():
        if name.endswith(("num_batches_tracked", *BUFFERS)):
            continue
        array = np.asarray(inner[name])
        if array.dtype == object or not jnp.issubdtype(array.dtype, jnp.floating):
            raise UserError(
                f'the weights hold "{name}", which is not an array of floating-point numbers '
                f"({array.dtype})"
            )
        with np.errstate(over="ignore"):  # `assign` reports infinite values
            arrays[own_name] = array.astype(np.float32, copy=False)
    return arrays


def assign(net: nnx.Module, wanted: Mapping[str, Leaf], given: Mapping[str, np.ndarray]) -> None:
    """Sets the leaves `wanted` of a network to the arrays `given`, all or none.

    Raises:
      UserError: if names or shapes differ (the message lists all), or values are not finite.
    """
    shapes = {name: torch_shape(leaf) for name, leaf in wanted.items()}
    # A linear map of pixels is a 1x1 convolution.
    given = {
        name: array[..., None, None]
        if array.ndim == 2 and shapes.get(name, ())[2:] == (1, 1)
        else array
        for name, array in given.items()
    }
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
        raise UserError(f"the weights do not fit this network; {'; '.join(texts)}")
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
        # Copies, because the device may keep reading the array. jnp.asarray would compile.
        array = np.array(given[name].transpose(layout), order="C")
        state.append((path, variable.replace(jax.device_put(array))))
    nnx.update(net, nnx.from_flat_state(state))


def _torch_name(path: tuple[Any, ...]) -> str:
    module, leaf = "/".join(map(str, path[:-1])), str(path[-1])
    for pattern, template in RULES:
        match = re.fullmatch(pattern, module)
        if match:
            name = match.expand(template)
            return f"{name}{'' if name.endswith('_') else '.'}{PARAMETERS.get(leaf, leaf)}"
    raise LookupError(f"kdjax.interop has no rule for the module {module}")


def _layout(leaf: str, dimensions: int) -> tuple[int, ...]:
    """Returns our axes in PyTorch's order: HWIO becomes OIHW, and IO becomes OI."""
    if leaf == "kernel":
        return {4: (3, 2, 0, 1), 2: (1, 0)}[dimensions]
    return tuple(range(dimensions))


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more
