"""Networks by name: of kdjax's own a head, an underscore, a backbone; or anybody's.

Channels are those of mmsegmentation's published configs, in times of the width. A backbone that
maps images to "stage1" to "stage4" goes with every head: it is one file and one line here.
"""

import types
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx

from kdjax.models.efficientnet_lite import SIZES as LITE_SIZES
from kdjax.models.efficientnet_lite import EfficientNetLite
from kdjax.models.heads import FCNHead, LRASPPHead, PyramidHead
from kdjax.models.hrnet import VARIANTS, HRNet
from kdjax.models.mix_transformer import SIZES, MixTransformer
from kdjax.models.mobilenet import MobileNetV2
from kdjax.models.network import Network, NNXNetwork, NoNetwork, is_made, network_of, traced_rngs
from kdjax.models.options import DTYPES, NetworkOptions
from kdjax.models.pyramid_heads import (
    AtrousPyramid,
    DeepLabHead,
    FPNHead,
    PyramidPooling,
    SeparableASPPHead,
    UPerHead,
)
from kdjax.models.resnet import DEPTHS, ResNet
from kdjax.models.segmenter import (
    AUTHORS_NORMS,
    HUGGINGFACE_NORMS,
    PROJECT_NETWORKS,
    Segmenter,
    combine,
    segformer,
    segformer_linear,
)
from kdjax.models.swin import SwinTransformer
from kdjax.utils import imports, schema
from kdjax.utils.errors import RAISED_BY_USERS, UserError, WrongValue


class Family(NamedTuple):
    """How a head goes with a backbone.

    Attributes:
      head: builds it from (specs, channels, num_classes, dtype=, rngs=).
      output_stride: of the backbone that it reads, where that can dilate, else 32.
      channels: of the head, in times of the width.
      shallow_channels: likewise, on shallow backbones.
      auxiliary: whether it has an auxiliary head, of half the channels.
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
    # Light ones. LR-ASPP as published; DeepLabV3+ as its paper has it, and the feature pyramid
    # without the convolutions behind it, at 96 of their 256 channels.
    "lraspp": Family(LRASPPHead, output_stride=16, channels=2, auxiliary=False),
    "deeplabv3plus_light": Family(
        partial(SeparableASPPHead, dilations=(6, 12, 18), bottleneck=1, fine=3 / 16),
        output_stride=16,
        channels=1.5,
        shallow_channels=1.5,
    ),
    "fpn_light": Family(FPNHead, output_stride=32, channels=1.5, shallow_channels=1.5),
}

# Backbones that can dilate. "b" after the depth is torchvision's stem, as mmsegmentation has it.
DILATABLE: dict[str, Callable[..., Any]] = {
    **{f"r{depth}": partial(ResNet, depth) for depth in DEPTHS},
    **{f"r{depth}b": partial(ResNet, depth, stem="plain") for depth in DEPTHS},
    "mbv2": MobileNetV2,
    **{f"efficientnet_{size}": partial(EfficientNetLite, size) for size in LITE_SIZES},
}
# Backbones whose strides are fixed.
FIXED: dict[str, Callable[..., Any]] = {
    **{f"hr{variant}": partial(HRNet, variant) for variant in VARIANTS},
    **{f"mit_{size}": partial(MixTransformer, size) for size in SIZES},
    "swin_t": SwinTransformer,
}
SHALLOW = ("r18", "r34", "r18b", "r34b")


def _network(family: Family, name: str) -> Callable[..., Segmenter]:
    """A family's head on a backbone, with half of its channels in the auxiliary head."""
    backbone = FIXED.get(name) or partial(DILATABLE[name], output_stride=family.output_stride)
    channels = family.shallow_channels if name in SHALLOW else family.channels
    return partial(
        combine, backbone, family.head, channels, channels / 2 if family.auxiliary else 0
    )


def _fcn_hrnet(
    variant: str,
    *,
    num_classes: int,
    width: int,
    auxiliary: bool,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
) -> Segmenter:
    """HRNet and a 1x1 convolution on its concatenated branches; it has no auxiliary head."""
    del auxiliary
    backbone = HRNet(variant, width=width, dtype=dtype, rngs=rngs)
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


_FACTORIES: dict[str, Callable[..., Segmenter]] = {
    f"{family}_{backbone}": _network(FAMILIES[family], backbone)
    for family in FAMILIES
    for backbone in (*DILATABLE, *FIXED)
}
_FACTORIES |= {f"fcn_hr{variant}": partial(_fcn_hrnet, variant) for variant in VARIANTS}
_FACTORIES |= {f"segformer_{size}": partial(segformer, size) for size in SIZES}
_FACTORIES |= {
    f"segformer_linear_{size}": partial(segformer_linear, size, HUGGINGFACE_NORMS) for size in SIZES
}
_FACTORIES |= {
    f"segformer_{size}@nvlabs": partial(segformer_linear, size, AUTHORS_NORMS) for size in SIZES
}
# The backbone of each, as DILATABLE and FIXED call it. That of "@cirkd" is another.
BACKBONES = {
    f"{family}_{backbone}": backbone for family in FAMILIES for backbone in (*DILATABLE, *FIXED)
}
for _size in SIZES:
    _names = (f"segformer_{_size}", f"segformer_linear_{_size}", f"segformer_{_size}@nvlabs")
    BACKBONES |= dict.fromkeys(_names, f"mit_{_size}")
# torchvision's, under its own names.
for _depth in (50, 101):
    _plain = partial(ResNet, _depth, stem="plain")
    _FACTORIES[f"fcn_resnet{_depth}"] = partial(
        combine, _plain, partial(FCNHead, sources=("stage4",)), 8, 4
    )
    _FACTORIES[f"deeplabv3_resnet{_depth}"] = partial(combine, _plain, DeepLabHead, 4, 4)
    BACKBONES |= {f"{head}_resnet{_depth}": f"r{_depth}b" for head in ("fcn", "deeplabv3")}
# As CIRKD and TorchDistiller build them.
_FACTORIES |= PROJECT_NETWORKS

# As names of anybody else's, these say where to import from; what they name is made above.
built_in = types.SimpleNamespace(**_FACTORIES)
NETWORKS = {name: f"{__name__}:built_in.{name}" for name in _FACTORIES}


def create(
    name: str,
    *,
    num_classes: int,
    rngs: nnx.Rngs,
    width: int = NetworkOptions.width,
    auxiliary: bool = True,
    dtype: str = NetworkOptions.dtype,
) -> Segmenter:
    """Creates one of kdjax's own networks, with freshly initialised float32 parameters.

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
    factory, arguments = find(
        name, num_classes=num_classes, width=width, auxiliary=auxiliary, dtype=dtype
    )
    return factory(**{**arguments, "rngs": rngs})


def make_network(name: str, *, where: str = "network", **settings: Any) -> Network:
    """A network by name in its neutral form: kdjax's own, or anybody's.

    Args:
      name: as `find` takes it.
      where: what holds the name, for messages, as "config.student".
      **settings: as `find` takes them.

    Raises:
      UserError: as `find`; for a factory that fails, or returns what is no network.
    """
    found, arguments = find(name, where=where, **settings)
    try:
        if is_made(found):
            return network_of(found)
        if "rngs" not in arguments:
            return network_of(found(**arguments))

        def make(rngs: nnx.Rngs) -> Any:
            return found(**{**arguments, "rngs": rngs})

        module: Any = nnx.eval_shape(lambda: make(traced_rngs(0)))
        if isinstance(module, nnx.bridge.ToNNX):
            return network_of(module)
        return NNXNetwork(make, module)
    except RAISED_BY_USERS as error:
        reason = str(error) if isinstance(error, NoNetwork) else f"{type(error).__name__}: {error}"
        raise WrongValue(f"{where}.name", f'names the network "{name}": {reason}') from error


def find(
    name: str,
    *,
    num_classes: int,
    width: int = NetworkOptions.width,
    auxiliary: bool = True,
    dtype: str = NetworkOptions.dtype,
    options: Mapping[str, Any] = MappingProxyType({}),
    where: str = "network",
) -> tuple[Any, dict[str, Any]]:
    """What a name stands for, and what it is called with; nothing is called.

    A factory gets `num_classes`, which it must have among its arguments unless it is a class with
    the methods of a `Network`, and `width`, `auxiliary`, `dtype` and `rngs` as far as it has them.
    A width or a dtype that it does not take must be left at its default.

    Args:
      name: one of `NETWORKS`, or "package.module:attribute" of a factory, or of what is a network
        already.
      num_classes: as in `create`.
      width: likewise.
      auxiliary: likewise.
      dtype: likewise.
      options: further keyword arguments of the factory.
      where: what holds the name, for messages.

    Raises:
      UserError: for an unknown name (with the nearest one), width, dtype or option, and for an
        argument that is missing.
    """
    found = imports.resolve("network", name, NETWORKS, asked_by=f"{where}.name")
    if num_classes < 1:
        raise UserError(f"num_classes is {num_classes}; a network needs at least one class")
    schema.check_number(f"{where}.width", width, schema.WIDTH)
    if dtype not in DTYPES:
        raise WrongValue(f"{where}.dtype", f'is "{dtype}"; it must be {" or ".join(DTYPES)}')
    settings = {"width": width, "auxiliary": auxiliary, "dtype": dtype}
    given: dict[str, Any] = {}
    if not is_made(found):
        offered = {"num_classes": num_classes, **settings, "dtype": jnp.dtype(dtype), "rngs": None}
        given = imports.arguments(
            "network",
            name,
            found,
            options,
            {(argument,): value for argument, value in offered.items()},
            key=f"{where}.name",
            options_key=f"{where}.options",
        )
        # A checkpoint of strangers names what is called: let it be nothing but a network's factory.
        network = isinstance(found, type) and issubclass(found, Network)
        if not network and ("num_classes" not in given or "num_classes" in options):
            raise WrongValue(
                f"{where}.name",
                f'names the network "{name}", which is no factory of networks: it must have an '
                "argument num_classes, which kdjax gives it",
            )
    elif options:
        raise WrongValue(f"{where}.options", f"is {dict(options)}, and {name} is no factory")
    # Without a word on auxiliary heads, a network has what it has.
    for key in ("width", "dtype"):
        if key not in given and settings[key] != getattr(NetworkOptions, key):
            raise WrongValue(
                f"{where}.{key}",
                f"is {settings[key]!r}, and {name} takes no {key}; what else it takes is set in "
                f"{where}.options",
            )
    return found, given
