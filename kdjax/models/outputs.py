"""What every network returns, and how it declares its features."""

from typing import NamedTuple

from flax import struct
from jaxtyping import Array, Float


class FeatureSpec(NamedTuple):
    """A named feature map: its channel count and its stride relative to the image."""

    channels: int
    stride: int


@struct.dataclass
class SegmentationOutput:
    """The output of a network on images [B, H, W, 3].

    Attributes:
      logits: class scores [B, h, w, K] at the network's own stride.
      aux_logits: class scores of the auxiliary head, or None where there is none.
      features: feature maps [B, h, w, C] by name; jit drops those that nobody reads.
    """

    logits: Float[Array, "B h w K"]
    aux_logits: Float[Array, "B h w K"] | None
    features: dict[str, Float[Array, "B h w C"]]
