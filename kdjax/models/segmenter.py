"""A segmentation network: a backbone, a head, and an auxiliary head for training."""

from typing import Protocol

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models.head import Head
from kdjax.models.outputs import FeatureSpec, SegmentationOutput


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
