"""The networks of CIRKD and TorchDistiller, two projects whose students people bring along.

Their layers are ours with other settings: a stem twice as wide, dilation in more places, pyramids
that align corners. A name ends with "@" and the project. CIRKD changed the channels of its heads
later: "@cirkd" has those of its first code, "@cirkdv2" those of its code for CIRKDv2.
Sources: github.com/winycg/CIRKD (models/) and github.com/irfanICMLL/TorchDistiller
(SemSeg-distill/networks/pspnet.py).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from flax import nnx

from kdjax.models.heads import FCNHead, PyramidHead
from kdjax.models.mobilenet import MobileNetV2
from kdjax.models.pyramid_heads import DeepLabHead, PyramidPooling
from kdjax.models.resnet import ResNet
from kdjax.models.segmenter import AUTHORS_NORMS, Segmenter, combine, segformer_linear

# Channels of the heads in times of the width: on ResNet-18 and MobileNetV2, and on deeper ones.
CIRKD_CHANNELS = {
    "cirkd": {"pspnet": (2, 8), "deeplabv3": (2, 4)},
    "cirkdv2": {"pspnet": (2, 4), "deeplabv3": (8, 8)},
}
CIRKD_HEADS: dict[str, Callable[..., Any]] = {
    "pspnet": partial(PyramidHead, partial(PyramidPooling, quarter=True, align_corners=True)),
    "deeplabv3": partial(DeepLabHead, dropout=0.1),
}
CIRKD_RESNETS = {
    **{
        f"r{depth}": partial(ResNet, depth, stem="wide", dilate_second=True)
        for depth in (18, 50, 101)
    },
    **{f"r{depth}b": partial(ResNet, depth, stem="plain") for depth in (50, 101)},
}


def _cirkd() -> dict[str, Callable[..., Segmenter]]:
    networks: dict[str, Callable[..., Segmenter]] = {}
    for project, families in CIRKD_CHANNELS.items():
        for family, (shallow, deep) in families.items():
            head = CIRKD_HEADS[family]
            for name, backbone in CIRKD_RESNETS.items():
                channels = (shallow, 1) if name == "r18" else (deep, 4)
                networks[f"{family}_{name}@{project}"] = partial(combine, backbone, head, *channels)
    # What the later version left as it was has one name.
    del networks["pspnet_r18@cirkdv2"]
    mobilenet = partial(MobileNetV2, dilate_all=True)
    for family, head in CIRKD_HEADS.items():
        networks[f"{family}_mbv2@cirkd"] = partial(combine, mobilenet, head, 2, 0)
    for size in ("b0", "b1", "b2", "b3", "b4"):
        networks[f"segformer_{size}@cirkd"] = partial(
            segformer_linear, size, AUTHORS_NORMS, dropout=0.0
        )
    return networks


def _torchdistiller() -> dict[str, Callable[..., Segmenter]]:
    head = partial(
        PyramidHead, partial(PyramidPooling, activation=nnx.leaky_relu, align_corners=True)
    )
    auxiliary_head = partial(FCNHead, activation=nnx.leaky_relu)
    networks: dict[str, Callable[..., Segmenter]] = {}
    for depth, channels in ((18, 2), (101, 8)):
        backbone = partial(
            ResNet, depth, stem="wide", contract=False, dilate_second=True, ceil_pool=True
        )
        networks[f"pspnet_r{depth}@torchdistiller"] = partial(
            combine, backbone, head, channels, channels, auxiliary_head
        )
    return networks


DISTILLERS = {**_cirkd(), **_torchdistiller()}
