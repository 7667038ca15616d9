"""A segmentation network: a backbone, a head, and an auxiliary head; or the backbone alone."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models.heads import FCNHead, Head
from kdjax.models.layers import Common, Features, Rngs
from kdjax.models.outputs import FeatureSpec, SegmentationOutput
from kdjax.utils.errors import UserError


class Backbone(Protocol):
    """Maps images to named feature maps."""

    @property
    def feature_specs(self) -> dict[str, FeatureSpec]: ...  # noqa: D102

    def __call__(self, images: Array, *, train: bool, rngs: Rngs) -> Features: ...  # noqa: D102


class FeatureExtractor(nnx.Module):
    """A backbone alone, a network without class scores."""

    def __init__(self, backbone: Backbone, *, dtype: jnp.dtype):
        self.backbone = backbone
        self.dtype = dtype

    @property
    def feature_specs(self) -> dict[str, FeatureSpec]:
        """Channels and stride of all maps, by name."""
        return dict(self.backbone.feature_specs)

    def __call__(
        self, images: Float[Array, "B H W C"], *, train: bool = False, rngs: Rngs = None
    ) -> Features:
        """Returns the maps of the backbone by name; see `Segmenter` for the arguments."""
        return dict(self.backbone(images.astype(self.dtype), train=train, rngs=rngs))


def make_extractor(
    backbone: Callable[..., Any],
    *,
    num_classes: int,
    width: int,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
    in_channels: int = 3,
) -> FeatureExtractor:
    """Builds a backbone alone, from (width=, in_channels=, dtype=, rngs=). It scores no classes."""
    del num_classes
    made = backbone(width=width, in_channels=in_channels, dtype=dtype, rngs=rngs)
    return FeatureExtractor(made, dtype=dtype)


class Segmenter(nnx.Module):
    """Backbone, head, and an auxiliary head that runs only in training.

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
        """Channels and stride of all maps that a distillation term can read, by name."""
        specs = dict(self.backbone.feature_specs)
        heads = {"head": self.head, "aux_head": self.auxiliary_head}
        for (features, head), logits in zip(heads.items(), ("logits", "aux_logits"), strict=True):
            if head is not None:
                specs[features] = FeatureSpec(head.channels, head.stride)
                specs[logits] = FeatureSpec(self.num_classes, head.stride)
        return specs

    def __call__(
        self, images: Float[Array, "B H W C"], *, train: bool = False, rngs: Rngs = None
    ) -> SegmentationOutput:
        """Runs the network.

        Args:
          images: normalized images [B, H, W, C] of any size, 3 channels for photos.
          train: use batch statistics and dropout, and run the auxiliary head.
          rngs: the randomness of dropout and drop path, needed in training.
        """
        features = dict(self.backbone(images.astype(self.dtype), train=train, rngs=rngs))
        scores, features["head"] = self.head(features, train=train, rngs=rngs)
        classifiers, aux_logits = {"logits": scores}, None
        if self.auxiliary_head is not None:
            auxiliary, features["aux_head"] = self.auxiliary_head(features, train=train, rngs=rngs)
            classifiers["aux_logits"], aux_logits = auxiliary, auxiliary.logits
        return SegmentationOutput(scores.logits, aux_logits, features, classifiers)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The parts of a network, which a call builds.

    Attributes:
      backbone: built from (width=, in_channels=, dtype=, rngs=).
      head: built from (specs, channels, num_classes, dtype=, rngs=).
      channels: of the head, per channel of the width.
      auxiliary_channels: of the auxiliary head, which reads "stage3"; 0 if the network has none.
      auxiliary_head: built like `head`, and from sources=.
    """

    backbone: Callable[..., Any]
    head: Callable[..., Head]
    channels: float
    auxiliary_channels: float = 0
    auxiliary_head: Callable[..., Head] = FCNHead

    def __call__(
        self,
        *,
        num_classes: int,
        width: int,
        auxiliary: bool,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        in_channels: int = 3,
    ) -> Segmenter:
        """Builds the network; `auxiliary` includes the auxiliary head.

        Raises:
          UserError: if there are no classes.
        """
        if num_classes < 1:
            raise UserError(f"num_classes is {num_classes}; a network needs at least one class")
        common = Common(dtype=dtype, rngs=rngs)
        backbone = self.backbone(width=width, in_channels=in_channels, **common)
        specs = backbone.feature_specs
        head = self.head(specs, round(self.channels * width), num_classes, **common)
        auxiliary_head = None
        if auxiliary and self.auxiliary_channels:
            channels = round(self.auxiliary_channels * width)
            auxiliary_head = self.auxiliary_head(
                specs, channels, num_classes, sources=("stage3",), **common
            )
        return Segmenter(backbone, head, auxiliary_head, num_classes=num_classes, dtype=dtype)
