"""The networks of kdjax by name.

The name of most networks is a head, an underscore, and a backbone. Their channels are those of
mmsegmentation's published configs, as multiples of the width. Any backbone that maps images to
"stage1" to "stage4" works with any head. A new backbone is one file and one line in this table. The
name of a backbone alone is a network without class scores.

The networks of other projects, whose names end with "@" and the project, have other settings of the
same layers. CIRKD and TorchDistiller have a stem of twice the width, more dilations, and pyramids
that align corners. CIRKD changed the channels of its heads later: "@cirkd" is its first code and
"@cirkdv2" the code for CIRKDv2. Sources: github.com/winycg/CIRKD (models/) and
github.com/irfanICMLL/TorchDistiller (SemSeg-distill/networks/pspnet.py).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from flax import nnx

from kdjax.models.efficientnet_lite import SIZES as LITE_SIZES
from kdjax.models.efficientnet_lite import EfficientNetLite
from kdjax.models.heads import (
    DeepLabHead,
    FCNHead,
    FPNHead,
    LinearProjection,
    LRASPPHead,
    MLPHead,
    PyramidHead,
    SeparableASPPHead,
    UPerHead,
    conv3x3,
)
from kdjax.models.hrnet import VARIANTS, HRNet
from kdjax.models.layers import ConvNorm
from kdjax.models.mix_transformer import SIZES, Epsilons, MixTransformer
from kdjax.models.mobilenet import MobileNetV2
from kdjax.models.outputs import STAGES
from kdjax.models.pyramids import AtrousPyramid, PyramidPooling
from kdjax.models.resnet import DEPTHS, ResNet
from kdjax.models.segmenter import Architecture, FeatureExtractor, make_extractor
from kdjax.models.swin import SwinTransformer
from kdjax.models.vit import VARIANTS as VIT_VARIANTS
from kdjax.models.vit import VisionTransformer


class Family(NamedTuple):
    """A head and how it fits backbones.

    Attributes:
      head: built from (specs, channels, num_classes, dtype=, rngs=).
      output_stride: of backbones that can dilate. Others have 32.
      channels: of the head, per channel of the width.
      shallow_channels: the same on shallow backbones.
      auxiliary: True if there is an auxiliary head, with half the channels.
    """

    head: Callable[..., Any]
    output_stride: int = 8
    channels: float = 8
    shallow_channels: float = 2
    auxiliary: bool = True


FAMILIES = {
    "pspnet": Family(partial(PyramidHead, PyramidPooling)),
    "deeplabv3": Family(partial(PyramidHead, AtrousPyramid)),
    "deeplabv3plus": Family(SeparableASPPHead),
    "fcn": Family(partial(FCNHead, sources=("stage4",), num_convs=2, concat_input=True)),
    "upernet": Family(UPerHead, output_stride=32, shallow_channels=8),
    # Light heads: LR-ASPP as published; DeepLabV3+ as in its paper and the top-down path of the
    # feature pyramid network, both with 96 instead of 256 channels.
    "lraspp": Family(LRASPPHead, output_stride=16, channels=2, auxiliary=False),
    "deeplabv3plus_light": Family(
        partial(SeparableASPPHead, dilations=(6, 12, 18), bottleneck=1, fine=3 / 16),
        output_stride=16,
        channels=1.5,
        shallow_channels=1.5,
    ),
    "fpn_light": Family(FPNHead, output_stride=32, channels=1.5, shallow_channels=1.5),
    # A 1x1 convolution on the last stage, whose channels it keeps.
    "linear": Family(
        partial(FCNHead, sources=("stage4",), num_convs=0),
        channels=0,
        shallow_channels=0,
        auxiliary=False,
    ),
}

# Backbones that can dilate. As in mmsegmentation, "b" after the depth means torchvision's stem.
DILATABLE: dict[str, Callable[..., Any]] = {
    **{f"r{depth}": partial(ResNet, depth) for depth in DEPTHS},
    **{f"r{depth}b": partial(ResNet, depth, stem="plain") for depth in DEPTHS},
    "mbv2": MobileNetV2,
    **{f"efficientnet_{size}": partial(EfficientNetLite, size) for size in LITE_SIZES},
}
# Backbones with fixed strides.
FIXED: dict[str, Callable[..., Any]] = {
    **{f"hr{variant}": partial(HRNet, variant) for variant in VARIANTS},
    **{f"mit_{size}": partial(MixTransformer, size) for size in SIZES},
    "swin_t": SwinTransformer,
    **{name: partial(VisionTransformer, name) for name in VIT_VARIANTS},
}
SHALLOW = ("r18", "r34", "r18b", "r34b")


def _architecture(family: Family, name: str) -> Architecture:
    """Returns a family's head on a backbone."""
    backbone = FIXED.get(name) or partial(DILATABLE[name], output_stride=family.output_stride)
    channels = family.shallow_channels if name in SHALLOW else family.channels
    auxiliary_channels = channels / 2 if family.auxiliary else 0
    return Architecture(backbone, family.head, channels, auxiliary_channels)


def _segformer_linear(size: str, epsilons: Epsilons, dropout: float = 0.1) -> Architecture:
    """Returns a SegFormer with linear projections, and a wider head from B2 on."""
    head = partial(MLPHead, projection=LinearProjection, dropout=dropout)
    channels = 4 if size in ("b0", "b1") else 12
    return Architecture(partial(MixTransformer, size, **epsilons), head, channels)


# HuggingFace has PyTorch's epsilon, and the authors only behind a convolution.
HUGGINGFACE_EPSILONS = Epsilons(epsilon=1e-5, conv_epsilon=1e-5)
AUTHORS_EPSILONS = Epsilons(epsilon=1e-6, conv_epsilon=1e-5)


def _cirkd() -> dict[str, Architecture]:
    # Channels of the heads on ResNet-18 and MobileNetV2, and on deeper backbones.
    channels = {
        "cirkd": {"pspnet": (2, 8), "deeplabv3": (2, 4)},
        "cirkdv2": {"pspnet": (2, 4), "deeplabv3": (8, 8)},
    }
    heads: dict[str, Callable[..., Any]] = {
        "pspnet": partial(PyramidHead, partial(PyramidPooling, quarter=True, align_corners=True)),
        "deeplabv3": partial(DeepLabHead, dropout=0.1),
    }
    wide = {
        f"r{depth}": partial(ResNet, depth, stem="wide", dilate_second=True)
        for depth in (18, 50, 101)
    }
    plain = {f"r{depth}b": partial(ResNet, depth, stem="plain") for depth in (50, 101)}
    networks: dict[str, Architecture] = {}
    for project, families in channels.items():
        for family, (shallow, deep) in families.items():
            for name, backbone in (wide | plain).items():
                sizes = (shallow, 1) if name == "r18" else (deep, 4)
                networks[f"{family}_{name}@{project}"] = Architecture(
                    backbone, heads[family], *sizes
                )
    # The same as "@cirkd".
    del networks["pspnet_r18@cirkdv2"]
    mobilenet = partial(MobileNetV2, dilate_all=True)
    for family, head in heads.items():
        networks[f"{family}_mbv2@cirkd"] = Architecture(mobilenet, head, 2)
    for size in ("b0", "b1", "b2", "b3", "b4"):
        networks[f"segformer_{size}@cirkd"] = _segformer_linear(size, AUTHORS_EPSILONS, dropout=0.0)
    return networks


def _torchdistiller() -> dict[str, Architecture]:
    pyramid = partial(PyramidPooling, activation=nnx.leaky_relu, align_corners=True)
    head = partial(PyramidHead, pyramid)
    auxiliary_head = partial(FCNHead, conv=partial(conv3x3, activation=nnx.leaky_relu))
    backbone = partial(ResNet, stem="wide", contract=False, dilate_second=True, ceil_pool=True)
    return {
        f"pspnet_r{depth}@torchdistiller": Architecture(
            partial(backbone, depth), head, channels, channels, auxiliary_head
        )
        for depth, channels in ((18, 2), (101, 8))
    }


# The backbone of each network, a key of DILATABLE or FIXED. Those of CIRKD and TorchDistiller are
# other backbones.
BACKBONES = {
    f"{family}_{backbone}": backbone for family in FAMILIES for backbone in (*DILATABLE, *FIXED)
}
ARCHITECTURES = {
    name: _architecture(FAMILIES[name.removesuffix(f"_{backbone}")], backbone)
    for name, backbone in BACKBONES.items()
}
# A 1x1 convolution on the concatenated branches of HRNet.
_HRNET_HEAD = partial(FCNHead, sources=STAGES, conv=partial(ConvNorm, size=1), dropout=0.0)
for _variant in VARIANTS:
    ARCHITECTURES[f"fcn_hr{_variant}"] = Architecture(FIXED[f"hr{_variant}"], _HRNET_HEAD, 0)
for _size in SIZES:
    ARCHITECTURES[f"segformer_{_size}"] = Architecture(FIXED[f"mit_{_size}"], MLPHead, 4)
for _name, _epsilons in (
    ("segformer_linear_{}", HUGGINGFACE_EPSILONS),
    ("segformer_{}@nvlabs", AUTHORS_EPSILONS),
):
    ARCHITECTURES |= {_name.format(size): _segformer_linear(size, _epsilons) for size in SIZES}
BACKBONES |= {
    name.format(size): f"mit_{size}"
    for size in SIZES
    for name in ("segformer_{}", "segformer_linear_{}", "segformer_{}@nvlabs")
}
# torchvision's networks.
_FCN_HEAD = partial(FCNHead, sources=("stage4",))
for _depth in (50, 101):
    _plain = partial(ResNet, _depth, stem="plain")
    ARCHITECTURES[f"fcn_resnet{_depth}"] = Architecture(_plain, _FCN_HEAD, 8, 4)
    ARCHITECTURES[f"deeplabv3_resnet{_depth}"] = Architecture(_plain, DeepLabHead, 4, 4)
    BACKBONES |= {f"{head}_resnet{_depth}": f"r{_depth}b" for head in ("fcn", "deeplabv3")}
ARCHITECTURES |= _cirkd() | _torchdistiller()

# Networks without class scores. Backbones that can dilate have the stride 32 here.
EXTRACTORS: dict[str, Callable[..., FeatureExtractor]] = {
    name: partial(make_extractor, backbone)
    for name, backbone in (
        *((name, partial(factory, output_stride=32)) for name, factory in DILATABLE.items()),
        *FIXED.items(),
    )
}
BACKBONES |= {name: name for name in EXTRACTORS}
