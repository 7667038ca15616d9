"""Segmentation networks: a backbone, a head, an auxiliary head, and how projects put them together.

The networks of CIRKD and TorchDistiller, two projects whose students people bring along, have our
layers with other settings: a stem twice as wide, dilation in more places, pyramids that align
corners. Their names end with "@" and the project. CIRKD changed the channels of its heads later:
"@cirkd" has those of its first code, "@cirkdv2" those of its code for CIRKDv2. Sources:
github.com/winycg/CIRKD (models/) and github.com/irfanICMLL/TorchDistiller
(SemSeg-distill/networks/pspnet.py).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models.heads import FCNHead, Head, LinearProjection, MLPHead, PyramidHead
from kdjax.models.mix_transformer import MixTransformer
from kdjax.models.mobilenet import MobileNetV2
from kdjax.models.outputs import FeatureSpec, SegmentationOutput
from kdjax.models.pyramid_heads import DeepLabHead, PyramidPooling
from kdjax.models.resnet import ResNet


class Backbone(Protocol):
    """Maps images to named feature maps."""

    @property
    def feature_specs(self) -> dict[str, FeatureSpec]: ...  # noqa: D102

    def __call__(  # noqa: D102
        self, images: Float[Array, "B H W 3"], *, train: bool, rngs: nnx.Rngs | None
    ) -> dict[str, Float[Array, "B h w C"]]: ...


class Segmenter(nnx.Module):
    """Backbone, head, and an auxiliary head that only training reads.

    The features are the backbone's stages and the inputs of the classifiers, "head" and "aux_head".
    """

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        auxiliary_head: Head | None,
        *,
        num_classes: int,
        dtype: jnp.dtype,
    ):
        self.backbone = backbone
        self.head = head
        self.auxiliary_head = auxiliary_head
        self.num_classes = num_classes
        self.dtype = dtype

    @property
    def feature_specs(self) -> dict[str, FeatureSpec]:
        """Channels and stride of everything that a distillation term may read, by name."""
        specs = self.backbone.feature_specs
        heads = {"head": self.head, "aux_head": self.auxiliary_head}
        for (features, head), logits in zip(heads.items(), ("logits", "aux_logits"), strict=True):
            if head is not None:
                specs[features] = FeatureSpec(head.channels, head.stride)
                specs[logits] = FeatureSpec(self.num_classes, head.stride)
        return specs

    def __call__(
        self,
        images: Float[Array, "B H W 3"],
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> SegmentationOutput:
        """Runs the network.

        Args:
          images: normalised images [B, H, W, 3] of any size.
          train: use batch statistics and dropout, and run the auxiliary head.
          rngs: source of the randomness of dropout and drop path, needed when training.
        """
        features = self.backbone(images.astype(self.dtype), train=train, rngs=rngs)
        scores, features["head"] = self.head(features, train=train, rngs=rngs)
        classifiers, aux_logits = {"logits": scores}, None
        if self.auxiliary_head is not None:
            auxiliary, features["aux_head"] = self.auxiliary_head(features, train=train, rngs=rngs)
            classifiers["aux_logits"], aux_logits = auxiliary, auxiliary.logits
        return SegmentationOutput(scores.logits, aux_logits, features, classifiers)


def combine(
    backbone: Callable[..., Any],
    head: Callable[..., Any],
    channels: float,
    auxiliary_channels: float,
    auxiliary_head: Callable[..., Any] = FCNHead,
    *,
    num_classes: int,
    width: int,
    auxiliary: bool,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
) -> Segmenter:
    """Builds a network.

    Args:
      backbone: builds it from (width=, dtype=, rngs=).
      head: builds it from (specs, channels, num_classes, dtype=, rngs=).
      channels: of the head, in times of the width.
      auxiliary_channels: of the auxiliary head, which reads "stage3", likewise; 0 where there is
        none.
      auxiliary_head: builds it from what `head` takes and sources=.
      num_classes: K.
      width: channels of the first stage.
      auxiliary: whether to build the auxiliary head.
      dtype: compute dtype; parameters are float32.
      rngs: source of the initial parameters.
    """
    body = backbone(width=width, dtype=dtype, rngs=rngs)
    specs = body.feature_specs
    main = head(specs, round(channels * width), num_classes, dtype=dtype, rngs=rngs)
    beside = None
    if auxiliary and auxiliary_channels:
        beside = auxiliary_head(
            specs,
            round(auxiliary_channels * width),
            num_classes,
            sources=("stage3",),
            dtype=dtype,
            rngs=rngs,
        )
    return Segmenter(body, main, beside, num_classes=num_classes, dtype=dtype)


def segformer(
    size: str, *, num_classes: int, width: int, auxiliary: bool, dtype: jnp.dtype, rngs: nnx.Rngs
) -> Segmenter:
    """Builds mmsegmentation's SegFormer, with four times the width in its head.

    It has no auxiliary head, whatever `auxiliary` says.
    """
    del auxiliary
    backbone = MixTransformer(size, width=width, dtype=dtype, rngs=rngs)
    head = MLPHead(backbone.feature_specs, 4 * width, num_classes, dtype=dtype, rngs=rngs)
    return Segmenter(backbone, head, None, num_classes=num_classes, dtype=dtype)


# Epsilons of HuggingFace's layer norms; of the authors' own, those behind a convolution have
# PyTorch's.
HUGGINGFACE_NORMS = {"epsilon": 1e-5}
AUTHORS_NORMS = {"epsilon": 1e-6, "conv_epsilon": 1e-5}


def segformer_linear(
    size: str,
    norms: dict[str, float],
    *,
    num_classes: int,
    width: int,
    auxiliary: bool,
    dropout: float = 0.1,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
) -> Segmenter:
    """Builds SegFormer with linear projections, and a wider head from B2 on.

    So do HuggingFace, the authors and CIRKD, whose head has no dropout. It has no auxiliary head,
    whatever `auxiliary` says.
    """
    del auxiliary
    backbone = MixTransformer(size, width=width, **norms, dtype=dtype, rngs=rngs)
    head = MLPHead(
        backbone.feature_specs,
        (4 if size in ("b0", "b1") else 12) * width,
        num_classes,
        projection=LinearProjection,
        dropout=dropout,
        dtype=dtype,
        rngs=rngs,
    )
    return Segmenter(backbone, head, None, num_classes=num_classes, dtype=dtype)


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


PROJECT_NETWORKS = {**_cirkd(), **_torchdistiller()}
