"""A segmentation network: a backbone, a head, and an auxiliary head for training."""

from typing import Protocol

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models.outputs import Classification, FeatureSpec, SegmentationOutput


class Backbone(Protocol):
    """Maps images to named feature maps."""

    @property
    def feature_specs(self) -> dict[str, FeatureSpec]: ...  # noqa: D102

    def __call__(  # noqa: D102
        self, images: Float[Array, "B H W 3"], *, train: bool
    ) -> dict[str, Float[Array, "B h w C"]]: ...


class Head(Protocol):
    """Maps one feature map to class scores and to the map that its classifier reads.

    Attributes:
      channels: of the map that the classifier reads.
    """

    channels: int

    def __call__(  # noqa: D102
        self, x: Float[Array, "B h w C"], *, train: bool, rngs: nnx.Rngs | None
    ) -> tuple[Classification, Float[Array, "B h w D"]]: ...


class Segmenter(nnx.Module):
    """Backbone, head on the last stage, auxiliary head on stage 3.

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
        stride = specs["stage4"].stride
        specs["head"] = FeatureSpec(self.head.channels, stride)
        specs["logits"] = FeatureSpec(self.num_classes, stride)
        if self.auxiliary_head is not None:
            stride = specs["stage3"].stride
            specs["aux_head"] = FeatureSpec(self.auxiliary_head.channels, stride)
            specs["aux_logits"] = FeatureSpec(self.num_classes, stride)
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
          rngs: source of dropout's randomness, needed when training.
        """
        features = self.backbone(images.astype(self.dtype), train=train)
        scores, features["head"] = self.head(features["stage4"], train=train, rngs=rngs)
        classifiers, aux_logits = {"logits": scores}, None
        if self.auxiliary_head is not None:
            auxiliary, features["aux_head"] = self.auxiliary_head(
                features["stage3"], train=train, rngs=rngs
            )
            classifiers["aux_logits"], aux_logits = auxiliary, auxiliary.logits
        return SegmentationOutput(scores.logits, aux_logits, features, classifiers)
