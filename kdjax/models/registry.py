"""Networks by name: a head, an underscore, a backbone.

Channels are those of mmsegmentation's published configs, in times of the width. A backbone that
maps images to "stage1" to "stage4" goes with every head: it is one file and one line here.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx

from kdjax.errors import UserError
from kdjax.models.aspp import AtrousPyramid
from kdjax.models.combine import combine
from kdjax.models.deeplab_head import DeepLabHead
from kdjax.models.distillers import DISTILLERS
from kdjax.models.fcn import FCNHead
from kdjax.models.head import PyramidHead
from kdjax.models.hrnet import PLANS, HRNet
from kdjax.models.mix_transformer import SIZES, MixTransformer
from kdjax.models.mobilenet import MobileNetV2
from kdjax.models.psp import PyramidPooling
from kdjax.models.resnet import DEPTHS, ResNet
from kdjax.models.segformer import segformer, segformer_linear, segformer_nvlabs
from kdjax.models.segmenter import Segmenter
from kdjax.models.separable_aspp import SeparableASPPHead
from kdjax.models.swin import SwinTransformer
from kdjax.models.upernet import UPerHead
from kdjax.suggest import nearest

# That networks compute in; their parameters are float32.
DTYPES = ("float32", "bfloat16")


class Family(NamedTuple):
    """How a head goes with a backbone.

    Attributes:
      head: builds it from (specs, channels, num_classes, dtype=, rngs=).
      dilated: whether it reads a backbone of output stride 8, where that can dilate, else of 32.
      narrow: whether shallow backbones get a quarter of the channels.
    """

    head: Callable[..., Any]
    dilated: bool = True
    narrow: bool = True


FAMILIES = {
    "pspnet": Family(partial(PyramidHead, PyramidPooling)),
    "deeplabv3": Family(partial(PyramidHead, AtrousPyramid)),
    "deeplabv3plus": Family(SeparableASPPHead),
    "fcn": Family(partial(FCNHead, sources=("stage4",), num_convs=2, concat_input=True)),
    "upernet": Family(UPerHead, dilated=False, narrow=False),
}

# Backbones that can dilate. "b" after the depth is torchvision's stem, as mmsegmentation has it.
DILATABLE: dict[str, Callable[..., Any]] = {
    **{f"r{depth}": partial(ResNet, depth) for depth in DEPTHS},
    **{f"r{depth}b": partial(ResNet, depth, stem="plain") for depth in DEPTHS},
    "mbv2": MobileNetV2,
}
# Backbones whose strides are fixed.
FIXED: dict[str, Callable[..., Any]] = {
    **{f"hr{plan}": partial(HRNet, plan) for plan in PLANS},
    **{f"mit_{size}": partial(MixTransformer, size) for size in SIZES},
    "swin_t": SwinTransformer,
}
SHALLOW = ("r18", "r34", "r18b", "r34b")


def _network(family: Family, name: str) -> Callable[..., Segmenter]:
    """A family's head on a backbone, with half of its channels in the auxiliary head."""
    backbone = FIXED.get(name) or partial(DILATABLE[name], dilated=family.dilated)
    channels = 2 if family.narrow and name in SHALLOW else 8
    return partial(combine, backbone, family.head, channels, channels // 2)


def _fcn_hrnet(
    plan: str,
    *,
    num_classes: int,
    width: int,
    auxiliary: bool,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
) -> Segmenter:
    """HRNet and a 1x1 convolution on its concatenated branches; it has no auxiliary head."""
    del auxiliary
    backbone = HRNet(plan, width=width, dtype=dtype, rngs=rngs)
    specs = backbone.feature_specs
    channels = sum(spec.channels for spec in specs.values())
    head = FCNHead(
        specs,
        channels,
        num_classes,
        sources=tuple(specs),
        size=1,
        dropout=0.0,
        dtype=dtype,
        rngs=rngs,
    )
    return Segmenter(backbone, head, None, num_classes=num_classes, dtype=dtype)


NETWORKS: dict[str, Callable[..., Segmenter]] = {
    f"{family}_{backbone}": _network(FAMILIES[family], backbone)
    for family in FAMILIES
    for backbone in (*DILATABLE, *FIXED)
}
NETWORKS |= {f"fcn_hr{plan}": partial(_fcn_hrnet, plan) for plan in PLANS}
NETWORKS |= {f"segformer_{size}": partial(segformer, size) for size in SIZES}
NETWORKS |= {f"segformer_linear_{size}": partial(segformer_linear, size) for size in SIZES}
NETWORKS |= {f"segformer_{size}@nvlabs": partial(segformer_nvlabs, size) for size in SIZES}
# torchvision's, under its own names.
for _depth in (50, 101):
    _plain = partial(ResNet, _depth, stem="plain")
    NETWORKS[f"fcn_resnet{_depth}"] = partial(
        combine, _plain, partial(FCNHead, sources=("stage4",)), 8, 4
    )
    NETWORKS[f"deeplabv3_resnet{_depth}"] = partial(combine, _plain, DeepLabHead, 4, 4)
NETWORKS |= DISTILLERS


def create(
    name: str,
    *,
    num_classes: int,
    rngs: nnx.Rngs,
    width: int = 64,
    auxiliary: bool = True,
    dtype: str | jnp.dtype = "float32",
) -> Segmenter:
    """Creates a network by name, with freshly initialised float32 parameters.

    Args:
      name: one of `NETWORKS`, as "pspnet_r18".
      num_classes: K, the number of class scores per pixel.
      rngs: source of the initial parameters.
      width: channels of the first stage, an even number; 64 is the published network and all other
        widths scale with it.
      auxiliary: whether to build the auxiliary head, which only training reads; `fcn_hr*`,
        SegFormer and CIRKD's MobileNetV2 have none.
      dtype: compute dtype, "float32" or "bfloat16".

    Raises:
      UserError: for an unknown name (with the nearest one), width or dtype.
    """
    if name not in NETWORKS:
        raise UserError(f'unknown network "{name}": {nearest(name, NETWORKS)}')
    if num_classes < 1:
        raise UserError(f"num_classes is {num_classes}; a network needs at least one class")
    if width < 2 or width % 2:
        raise UserError(f"width is {width}; it must be even and positive (64 is as published)")
    if (dtype if isinstance(dtype, str) else jnp.dtype(dtype).name) not in DTYPES:
        raise UserError(f'dtype is "{dtype}"; compute in "{DTYPES[0]}" or "{DTYPES[1]}"')
    return NETWORKS[name](
        num_classes=num_classes, width=width, auxiliary=auxiliary, dtype=jnp.dtype(dtype), rngs=rngs
    )
