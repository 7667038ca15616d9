"""The projects whose weights kdjax reads, and how their names become mmsegmentation's.

`ORIGINS` has one row for each kind of file: the project, the beginnings of names by which kdjax
recognizes the file, and the rules that rename its weights.

The names of SegFormer at HuggingFace are those of transformers 4.57, whose outputs with random
weights were compared. SegFormer's authors (github.com/NVlabs/SegFormer) published networks for
mmsegmentation 0.11 and backbones that classify images (`mit_b0.pth`); CIRKD took over their code.
The names of the authors, CIRKD, and TorchDistiller come from their code, not from published files.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from kdjax.interop.mmseg import (
    TIMM,
    Rules,
    assign,
    floats_of,
    from_mmseg,
    leaves,
    red_first,
    unwrapped,
)
from kdjax.models import FeatureExtractor, Preprocessing, Segmenter
from kdjax.models.mobilenet import LAYERS
from kdjax.models.outputs import EFFICIENTNET_LITE as EFFICIENTNET_LITE_PREPROCESSING
from kdjax.models.outputs import IMAGENET as IMAGENET_PREPROCESSING
from kdjax.models.outputs import MEAN_ONLY
from kdjax.utils.errors import UserError

MMSEG = "mmsegmentation"
TORCHVISION = "torchvision"
HUGGINGFACE = "HuggingFace"
CIRKD = "CIRKD"
TORCHDISTILLER = "TorchDistiller"
NVLABS = "SegFormer's authors"
IMAGENET = "an image classifier"
EFFICIENTNET_LITE = "EfficientNet-Lite"
DINO = "DINOv2 and DINOv3"

# Projects whose images have blue first. `load_weights` reverses their first convolution.
BLUE_FIRST = (CIRKD, TORCHDISTILLER)
# Weights of a backbone alone.
CLASSIFIERS = (IMAGENET, EFFICIENTNET_LITE, DINO)
AUXILIARY_HEADS = ("auxiliary_head.", "aux_classifier.", "auxlayer.", "dsn.")

Weights = dict[str, np.ndarray]


class Naming(NamedTuple):
    """How the names of one kind of file become mmsegmentation's.

    Attributes:
      rules: regular expressions that match the beginning of a name, and the template that replaces
        the match. The first rule that matches counts; an empty template leaves the weight out.
      prepare: changes the weights before the rules.
      finish: changes the weights after the rules.
    """

    rules: Rules
    prepare: Callable[[Weights], Weights] = dict
    finish: Callable[[Weights], Weights] = dict

    def apply(self, weights: Weights, project: str) -> Weights:
        """Returns weights under mmsegmentation's names.

        Raises:
          UserError: if a name is unknown, or a part of an attention is missing.
        """
        found = {}
        for name, array in self.prepare(weights).items():
            for pattern, template in self.rules:
                if match := re.match(pattern, name):
                    if template:
                        found[match.expand(template) + name[match.end() :]] = array
                    break
            else:
                raise UserError(
                    f'the weights hold "{name}", which is no part of the networks of {project} '
                    "that kdjax reads"
                )
        return self.finish(_without_biases(found))


def _without_biases(weights: Weights) -> Weights:
    """Moves the bias of a convolution into the running mean of the batch norm behind it.

    In training, batch norm removes a constant. Otherwise, the constant only shifts the mean.
    """
    for name in [name for name in weights if name.endswith(".conv.bias")]:
        mean = f"{name.removesuffix('.conv.bias')}.bn.running_mean"
        if mean in weights:
            weights[mean] = weights[mean] - weights.pop(name)
    return weights


def _fused(parts: Sequence[str], whole: str, weights: Weights) -> Weights:
    """Concatenates queries, keys, and values into one array."""
    weights = dict(weights)
    fused = {
        name.replace(part, whole): [name.replace(part, other) for other in parts]
        for name in weights
        for part in parts
        if part in name
    }
    for name, sources in fused.items():
        missing = [source for source in sources if source not in weights]
        if missing:
            raise UserError(f"the weights lack {' and '.join(missing)}")
        weights[name] = np.concatenate([weights.pop(source) for source in sources])
    return weights


def _by_layer(
    pattern: str, template: str, block_counts: Iterable[int], weights: Weights
) -> Weights:
    """Replaces the running number of a block by its layer and its place in the layer."""
    places = [
        template.format(layer, block)
        for layer, count in enumerate(block_counts)
        for block in range(count)
    ]

    def place(match: re.Match[str]) -> str:
        number = int(match[1])
        return places[number] if number < len(places) else match[0]

    return {re.sub(pattern, place, name): array for name, array in weights.items()}


def _reordered(
    kernel: str, reorder: Callable[[np.ndarray], np.ndarray], weights: Weights
) -> Weights:
    """Reorders the input channels of one kernel [O, I, h, w]."""
    if kernel in weights:
        weights[kernel] = reorder(weights[kernel])
    return weights


BOTTLENECK = "decode_head.bottleneck.conv.weight"
# mmsegmentation's atrous pyramid begins with the pooled image; other projects end with it.
pooled_image_first = partial(
    _reordered, BOTTLENECK, lambda kernel: np.roll(kernel, kernel.shape[1] // 5, axis=1)
)
# mmsegmentation's SegFormer reads the stages from first to last; other projects the other way.
stages_in_order = partial(
    _reordered,
    "decode_head.fusion_conv.conv.weight",
    lambda kernel: np.concatenate(np.split(kernel, 4, axis=1)[::-1], axis=1),
)


def _sequential(source: str, target: str, first: int = 0) -> Rules:
    """Returns the rules for a convolution and its norm, successive parts of a Sequential."""
    return [
        (rf"{source}\.{first + i}\.", f"{target}.{part}.") for i, part in enumerate(("conv", "bn"))
    ]


def _deep_stem(prefix: str = "") -> Rules:
    """Returns the rules for conv1, bn1, ..., conv3, bn3 of a deep stem."""
    return [
        (rf"{prefix}{part}{i + 1}\.", f"backbone.stem.{3 * i + place}.")
        for i in range(3)
        for place, part in enumerate(("conv", "bn"))
    ]


def _fcn(source: str, target: str) -> Rules:
    """Returns the rules for torchvision's FCN head."""
    return [*_sequential(source, f"{target}.convs.0"), (rf"{source}\.4\.", f"{target}.conv_seg.")]


TORCHVISION_FCN = Naming(
    [
        (r"backbone\.", "backbone."),
        *_fcn("classifier", "decode_head"),
        *_fcn("aux_classifier", "auxiliary_head"),
    ]
)
_DEEPLAB_HEAD = [
    *_sequential(r"classifier\.0\.convs\.([0-3])", r"decode_head.aspp_modules.\1"),
    *_sequential(r"classifier\.0\.convs\.4", "decode_head.image_pool.1", first=1),
    *_sequential(r"classifier\.0\.project", "decode_head.bottleneck"),
    *_sequential("classifier", "decode_head.refine", first=1),
]
TORCHVISION_DEEPLAB = Naming([*_DEEPLAB_HEAD, *TORCHVISION_FCN.rules], finish=pooled_image_first)


def _segformer_stage(i: int) -> Rules:
    """Returns the rules for a stage: of HuggingFace, and of the authors, who count from 1."""
    prefix = r"(?:segformer\.encoder\.|backbone\.|decode_head\.)?"
    embedding = rf"{prefix}patch_embed(?:dings\.{i}|{i + 1})\."
    block = rf"{prefix}block(?:\.{i}|{i + 1})\.(\d+)\."
    name, block_name = f"backbone.layers.{i}", rf"backbone.layers.{i}.1.\1"
    return [
        (rf"{embedding}proj\.", f"{name}.0.projection."),
        (rf"{embedding}(?:layer_)?norm\.", f"{name}.0.norm."),
        (rf"{block}(?:layer_norm_|norm)([12])\.", rf"{block_name}.norm\2."),
        (rf"{block}(?:attention\.self|attn)\.in_proj_", rf"{block_name}.attn.attn.in_proj_"),
        (rf"{block}(?:attention\.self|attn)\.sr\.", rf"{block_name}.attn.sr."),
        (rf"{block}(?:attention\.self\.layer_norm|attn\.norm)\.", rf"{block_name}.attn.norm."),
        (
            rf"{block}(?:attention\.output\.dense|attn\.proj)\.",
            rf"{block_name}.attn.attn.out_proj.",
        ),
        (rf"{block}mlp\.(?:dense1|fc1)\.", rf"{block_name}.ffn.layers.0."),
        (rf"{block}mlp\.dwconv\.dwconv\.", rf"{block_name}.ffn.layers.1."),
        (rf"{block}mlp\.(?:dense2|fc2)\.", rf"{block_name}.ffn.layers.4."),
        (rf"{prefix}(?:layer_norm\.{i}|norm{i + 1})\.", f"{name}.2."),
        (rf"{prefix}linear_c(?:\.{i}|{i + 1})\.proj\.", f"decode_head.convs.{i}.conv."),
    ]


def _fused_attention(weights: Weights) -> Weights:
    weights = _fused((".self.query.", ".self.key.", ".self.value."), ".self.in_proj_", weights)
    return _fused((".attn.q.", ".attn.kv."), ".attn.in_proj_", weights)


SEGFORMER = Naming(
    [
        *(rule for i in range(4) for rule in _segformer_stage(i)),
        # HuggingFace; the authors, with a ConvModule; CIRKD, with a Sequential.
        (
            r"(?:decode_head\.)?(?:batch_norm|linear_fuse\.(?:bn|1))\.",
            "decode_head.fusion_conv.bn.",
        ),
        (r"(?:decode_head\.)?linear_fuse\.(?:(?:conv|0)\.)?", "decode_head.fusion_conv.conv."),
        (r"(?:decode_head\.)?(?:linear_pred|classifier)\.", "decode_head.conv_seg."),
        # An unused classifier, which mmsegmentation adds to every head; a classifier of images.
        (r"decode_head\.conv_seg\.|head\.", ""),
    ],
    _fused_attention,
    stages_in_order,
)

_MOBILENET_COUNTS = (1, *(layer.blocks for layer in LAYERS))  # the first convolution is number 0
_mobilenet_layers = partial(
    _by_layer, r"features\.(\d+)\.conv(?=\.)", "layer{}.{}.conv", _MOBILENET_COUNTS
)
_CIRKD_COMMON = [
    *_sequential(r"pretrained\.net\.features\.0", "backbone.conv1"),
    *_sequential(r"pretrained\.net\.(layer\d\.\d)\.conv", r"backbone.\1.conv.0"),
    *_sequential(r"pretrained\.net\.(layer\d\.\d)\.conv", r"backbone.\1.conv.1", first=3),
    *_sequential(r"pretrained\.net\.(layer\d\.\d)\.conv", r"backbone.\1.conv.2", first=6),
    (r"pretrained\.(layer[1-4]|conv1|bn1)\.", r"backbone.\1."),
    *_sequential(r"auxlayer\.block", "auxiliary_head.convs.0"),
    (r"auxlayer\.block\.4\.", "auxiliary_head.conv_seg."),
]
_CIRKD_PSP_HEAD = [
    *(
        rule
        for i in range(4)
        for rule in _sequential(rf"head\.psp\.conv{i + 1}", f"decode_head.psp_modules.{i}.1")
    ),
    *_sequential(r"head\.block", "decode_head.bottleneck"),
    (r"head\.classifier\.", "decode_head.conv_seg."),
]
_CIRKD_ASPP_HEAD = [
    *_sequential(r"head\.aspp\.b0", "decode_head.aspp_modules.0"),
    *_sequential(r"head\.aspp\.b([123])\.block", r"decode_head.aspp_modules.\1"),
    *_sequential(r"head\.aspp\.b4\.gap", "decode_head.image_pool.1", first=1),
    *_sequential(r"head\.aspp\.project", "decode_head.bottleneck"),
    *_sequential(r"head\.block", "decode_head.refine"),
    (r"head\.block\.4\.", "decode_head.conv_seg."),
]
_CIRKD_STEM = _deep_stem(r"pretrained\.")


def _cirkd(*rules: Rules, finish: Callable[[Weights], Weights] = dict) -> Naming:
    return Naming([*itertools.chain(*rules, _CIRKD_COMMON)], _mobilenet_layers, finish)


CIRKD_PSPNET = _cirkd(_CIRKD_PSP_HEAD)
CIRKD_PSPNET_DEEP = _cirkd(_CIRKD_STEM, _CIRKD_PSP_HEAD)
CIRKD_DEEPLAB = _cirkd(_CIRKD_ASPP_HEAD, finish=pooled_image_first)
CIRKD_DEEPLAB_DEEP = _cirkd(_CIRKD_STEM, _CIRKD_ASPP_HEAD, finish=pooled_image_first)

_TORCHDISTILLER_PSPNET = [
    *_deep_stem(),
    (r"(layer[1-4])\.", r"backbone.\1."),
    (r"pspmodule\.stages\.(\d)\.1\.", r"decode_head.psp_modules.\1.1.conv."),
    (r"pspmodule\.stages\.(\d)\.2\.", r"decode_head.psp_modules.\1.1.bn."),
    *_sequential(r"pspmodule\.bottleneck", "decode_head.bottleneck"),
    (r"head\.", "decode_head.conv_seg."),
    *_sequential("dsn", "auxiliary_head.convs.0"),
    (r"dsn\.3\.", "auxiliary_head.conv_seg."),
]
# InPlaceABN before version 1 scales by the magnitude of its weight plus this number.
INPLACE_ABN_EPSILON = np.float32(1e-5)


def _inplace_abn(weights: Weights) -> Weights:
    scales = {name.replace("running_var", "weight") for name in weights if "running_var" in name}
    return {
        name: np.abs(array) + INPLACE_ABN_EPSILON if name in scales else array
        for name, array in weights.items()
    }


def _map_first(weights: Weights) -> Weights:
    """Reorders the inputs of the bottleneck, which reads the pooled maps before the map."""
    pooled = sum(
        array.shape[0]
        for name, array in weights.items()
        if re.match(r"decode_head\.psp_modules\.\d\.1\.conv\.weight", name)
    )
    return _reordered(BOTTLENECK, lambda kernel: np.roll(kernel, -pooled, axis=1), weights)


TORCHDISTILLER_PSPNET = Naming(_TORCHDISTILLER_PSPNET, _inplace_abn, _map_first)

# Classifiers of images: the first rules leave out the layers behind the backbone.
_AS_BACKBONE = (r"(?:backbone\.)?", "backbone.")
PLAIN_BACKBONE = Naming([(r"(?:fc|head)\.", ""), _AS_BACKBONE])
# The ResNets that CIRKD and TorchDistiller begin from.
WIDE_RESNET = Naming([(r"fc\.", ""), *_deep_stem(r"(?:backbone\.)?"), _AS_BACKBONE])
# timm's ResNets with a deep stem.
TIMM_RESNET = Naming(
    [
        (r"fc\.", ""),
        (r"conv1\.(\d)\.", r"backbone.stem.\1."),
        (r"bn1\.", "backbone.stem.7."),
        _AS_BACKBONE,
    ]
)
OPENMMLAB_MOBILENET = Naming([(r"(?:backbone\.)?conv2\.|head\.", ""), _AS_BACKBONE])
TORCHVISION_MOBILENET = Naming(
    [
        (r"features\.18\.|classifier\.", ""),
        *_sequential(r"features\.0", "backbone.conv1"),
        # The last convolution of a block and its norm are parts of the block itself.
        *_sequential(r"layer1\.0\.conv", "backbone.layer1.0.conv.1", first=1),
        *_sequential(r"(layer\d\.\d)\.conv\.(\d)", r"backbone.\1.conv.\2"),
        *_sequential(r"(layer\d\.\d)\.conv", r"backbone.\1.conv.2", first=2),
    ],
    _mobilenet_layers,
)
_LITE = f"backbone.{TIMM}"
TIMM_EFFICIENTNET = Naming(
    [(r"conv_head\.|bn2\.|classifier\.", ""), (r"(?=conv_stem|bn1|blocks)", _LITE)]
)
_PACKAGE_EFFICIENTNET = [
    (r"_conv_head\.|_bn1\.|_fc\.", ""),
    (r"_conv_stem\.", f"{_LITE}conv_stem."),
    (r"_bn0\.", f"{_LITE}bn1."),
    # The block of the first layer does not expand.
    (r"(blocks\.0\.\d+)\._project_conv\.", rf"{_LITE}\1.conv_pw."),
    (r"(blocks\.0\.\d+\.)_bn([12])\.", rf"{_LITE}\1bn\2."),
    (r"(blocks\.\d+\.\d+)\._expand_conv\.", rf"{_LITE}\1.conv_pw."),
    (r"(blocks\.\d+\.\d+)\._depthwise_conv\.", rf"{_LITE}\1.conv_dw."),
    (r"(blocks\.\d+\.\d+)\._project_conv\.", rf"{_LITE}\1.conv_pwl."),
    *((rf"(blocks\.\d+\.\d+)\._bn{i}\.", rf"{_LITE}\1.bn{i + 1}.") for i in range(3)),
]


def _efficientnet_layers(weights: Weights) -> Weights:
    """Renames the numbered blocks. A layer begins where the number of channels changes."""
    channels = []
    while (project := f"_blocks.{len(channels)}._project_conv.weight") in weights:
        channels.append(weights[project].shape[0])
    block_counts = [len([*layer]) for _, layer in itertools.groupby(channels)]
    return _by_layer(r"^_blocks\.(\d+)", "blocks.{}.{}", block_counts, weights)


PACKAGE_EFFICIENTNET = Naming(_PACKAGE_EFFICIENTNET, _efficientnet_layers)


def _dino_huggingface(weights: Weights) -> Weights:
    """Joins queries, keys, and values, and the two parts of SwiGLU."""
    zeros = {
        name.replace("q_proj", "k_proj"): np.zeros_like(array)
        for name, array in weights.items()
        if name.endswith("q_proj.bias")
    }
    # The keys of DINOv3 have no bias.
    weights = {**zeros, **weights}
    for parts, whole in (
        ((".q_proj.", ".k_proj.", ".v_proj."), ".qkv."),
        ((".attention.query.", ".attention.key.", ".attention.value."), ".qkv."),
        ((".gate_proj.", ".up_proj."), ".fc1."),
    ):
        if any(parts[0] in name for name in weights):
            weights = _fused(parts, whole, weights)
    return weights


def _dino_authors(weights: Weights) -> Weights:
    """Applies the masks of DINOv3's biases, and joins the two parts of its SwiGLU."""
    masked = dict(weights)
    for name in [name for name in weights if name.endswith(".bias_mask")]:
        bias = name.removesuffix("_mask")
        masked[bias] = np.where(masked.pop(name) > 0, masked[bias], 0)
    if any(".mlp.w1." in name for name in masked):
        masked = _fused((".mlp.w1.", ".mlp.w2."), ".mlp.fc1.", masked)
    return masked


_VIT = r"(?:dinov2\.|dinov2_with_registers\.|dinov3_vit\.|backbone\.)?"
_VIT_LAYER = rf"{_VIT}(?:encoder\.|model\.)?layer\.(\d+)\."
DINO_HUGGINGFACE = Naming(
    [
        (rf"{_VIT}embeddings\.mask_token|classifier\.", ""),
        (rf"{_VIT}embeddings\.(cls_token|register_tokens)", r"backbone.\1"),
        (rf"{_VIT}embeddings\.position_embeddings", "backbone.pos_embed"),
        (rf"{_VIT}embeddings\.patch_embeddings\.(?:projection\.)?", "backbone.patch_embed.proj."),
        (rf"{_VIT}(?:layer)?norm\.", "backbone.norm."),
        (rf"{_VIT_LAYER}(norm[12])\.", r"backbone.blocks.\1.\2."),
        (rf"{_VIT_LAYER}attention\.qkv\.", r"backbone.blocks.\1.attn.qkv."),
        (
            rf"{_VIT_LAYER}attention\.(?:o_proj|output\.dense)\.",
            r"backbone.blocks.\1.attn.proj.",
        ),
        (rf"{_VIT_LAYER}layer_scale([12])\.lambda1", r"backbone.blocks.\1.ls\2.gamma"),
        (rf"{_VIT_LAYER}mlp\.(?:fc1|weights_in|up_proj)\.", r"backbone.blocks.\1.mlp.fc1."),
        (rf"{_VIT_LAYER}mlp\.(?:fc2|weights_out|down_proj)\.", r"backbone.blocks.\1.mlp.fc2."),
    ],
    _dino_huggingface,
)
DINO_AUTHORS = Naming(
    [
        # The norm of DINOv3's class token in local crops, and constants.
        (r"mask_token|rope_embed\.|local_cls_norm\.", ""),
        (r"storage_tokens", "backbone.register_tokens"),
        (r"(blocks\.\d+)\.mlp\.w12\.", r"backbone.\1.mlp.fc1."),
        (r"(blocks\.\d+)\.mlp\.w3\.", r"backbone.\1.mlp.fc2."),
        _AS_BACKBONE,
    ],
    _dino_authors,
)

# The project, the beginnings of names, and the naming. A row fits if every beginning occurs, with
# or without "backbone." before it. The first row that fits counts.
ORIGINS: list[tuple[str, list[str], Naming]] = [
    (NVLABS, ["decode_head.linear_pred."], SEGFORMER),
    (HUGGINGFACE, ["segformer.", "decode_head."], SEGFORMER),
    (MMSEG, ["decode_head."], Naming([("", r"\g<0>")])),
    (TORCHVISION, ["backbone.", "classifier.0.project."], TORCHVISION_DEEPLAB),
    (TORCHVISION, ["backbone.", "classifier."], TORCHVISION_FCN),
    (CIRKD, ["pretrained.conv2.", "head.aspp."], CIRKD_DEEPLAB_DEEP),
    (CIRKD, ["pretrained.conv2.", "head."], CIRKD_PSPNET_DEEP),
    (CIRKD, ["pretrained.", "head.aspp."], CIRKD_DEEPLAB),
    (CIRKD, ["pretrained.", "head."], CIRKD_PSPNET),
    (CIRKD, ["patch_embed1.", "linear_pred."], SEGFORMER),
    (TORCHDISTILLER, ["pspmodule.", "head."], TORCHDISTILLER_PSPNET),
    (EFFICIENTNET_LITE, ["conv_stem.", "blocks."], TIMM_EFFICIENTNET),
    (EFFICIENTNET_LITE, ["_conv_stem.", "_blocks."], PACKAGE_EFFICIENTNET),
    (DINO, ["embeddings.cls_token", "embeddings.patch_embeddings."], DINO_HUGGINGFACE),
    (DINO, ["dinov2", "classifier."], DINO_HUGGINGFACE),
    (DINO, ["cls_token", "patch_embed.proj.", "blocks.0.ls1."], DINO_AUTHORS),
    (IMAGENET, ["features.0.0.", "features.18."], TORCHVISION_MOBILENET),
    (IMAGENET, ["patch_embed1.", "block1."], SEGFORMER),
    (IMAGENET, ["layers.0.0.projection."], PLAIN_BACKBONE),
    (IMAGENET, ["patch_embed.projection.", "stages.0."], PLAIN_BACKBONE),
    (IMAGENET, ["layer1.", "stage4."], PLAIN_BACKBONE),
    (IMAGENET, ["layer1.", "layer7."], OPENMMLAB_MOBILENET),
    (IMAGENET, ["layer1.", "layer4.", "conv1.0."], TIMM_RESNET),
    (IMAGENET, ["layer1.", "layer4.", "conv3."], WIDE_RESNET),
    (IMAGENET, ["layer1.", "layer4."], PLAIN_BACKBONE),
]


def _find(names: Sequence[str]) -> tuple[str, Naming]:
    own = {*names, *(name.removeprefix("backbone.") for name in names)}
    for project, beginnings, naming in ORIGINS:
        if all(any(name.startswith(beginning) for name in own) for beginning in beginnings):
            return project, naming
    raise UserError(
        f"weights named {', '.join(names[:3])} and so on are unknown; kdjax reads mmsegmentation, "
        "torchvision's FCN and DeepLabV3, SegFormer of HuggingFace and of its authors, CIRKD, "
        "TorchDistiller, and the backbones ResNet, MobileNetV2, EfficientNet-Lite, Mix "
        "Transformer, Swin, and HRNet of torchvision, timm, OpenMMLab, efficientnet-lite-pytorch, "
        "and SegFormer's authors, and DINOv2 and DINOv3 of HuggingFace and of their authors"
    )


def origin(names: Iterable[str]) -> str:
    """Returns the project that weights of these names come from, for example "mmsegmentation".

    All backbones but EfficientNet-Lite and DINO have the origin `IMAGENET`.

    Raises:
      UserError: if the names are of no known project.
    """
    return _find([*unwrapped([*names]).values()])[0]


def preprocessing(project: str) -> Preprocessing:
    """Returns how a project normalizes images. In kdjax, the channel order is always RGB."""
    if project == EFFICIENTNET_LITE:
        return EFFICIENTNET_LITE_PREPROCESSING
    return MEAN_ONLY if project in BLUE_FIRST else IMAGENET_PREPROCESSING


def has_auxiliary_head(names: Iterable[str]) -> bool:
    """Returns True if a network needs its auxiliary head for weights of these names."""
    own = [*unwrapped([*names]).values()]
    if _find(own)[0] in CLASSIFIERS:
        return True
    return any(part in name for name in own for part in AUXILIARY_HEADS)


def load_weights(
    net: Segmenter | FeatureExtractor, weights: Mapping[str, Any], *, new_classifier: bool = False
) -> None:
    """Sets a network to the weights of any known project.

    An image classifier or a backbone alone sets the backbone; the heads stay as they are. For
    projects whose images have blue first, the first convolution is reversed, so that the network
    reads RGB like all networks of kdjax.

    Args:
      net: a network of `kdjax.models`: for CIRKD, the authors' SegFormer, and TorchDistiller the
        network whose name ends with "@cirkd", "@cirkdv2", "@nvlabs", or "@torchdistiller"; for
        HuggingFace a `segformer_linear_*`; for torchvision's FCN and DeepLabV3 the network of the
        same name; for a backbone any network with this backbone. torchvision's and most of timm's
        ResNets have the plain stem (`pspnet_r18b`).
      weights: arrays by name, as in `from_mmseg`.
      new_classifier: keep the network's classifiers if the number of classes differs.

    Raises:
      UserError: if the origin is unknown, or the weights do not fit the network. The message uses
        mmsegmentation's names, and for DINO those of DINOv2's authors.
    """
    arrays = floats_of(weights)
    project, naming = _find([*arrays])
    arrays = naming.apply(arrays, project)
    if project in CLASSIFIERS:
        wanted = {name: leaf for name, leaf in leaves(net).items() if name.startswith("backbone.")}
        assign(net, wanted, arrays)
    elif isinstance(net, FeatureExtractor):
        raise UserError(
            f"the weights of {project} are those of a network with a head, not of a backbone alone"
        )
    else:
        from_mmseg(net, arrays, new_classifier=new_classifier)
        if project in BLUE_FIRST:
            red_first(net)
