"""Named feature maps, and their properties before a network runs."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# The names of maps that hold class scores.
SCORES = ("logits", "aux_logits")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Classification:
    """Class scores and the linear layer that made them: `logits = inputs @ kernel + bias`.

    A `Classification` may replace the scores among a network's maps. Losses that augment features
    need one.

    Attributes:
      logits: class scores `[B, h, w, K]`.
      inputs: the input of the last 1x1 convolution, `[B, h, w, A]`. In training, after dropout.
      kernel: the kernel of that convolution, `[A, K]`.
      bias: its bias, `[K]`.
    """

    logits: Float[Array, "B h w K"]
    inputs: Float[Array, "B h w A"]
    kernel: Float[Array, "A K"]
    bias: Float[Array, " K"]


Maps = Mapping[str, Array | Classification]
"""Maps `[B, h, w, C]` by name. The class scores are named "logits"."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """The properties of a map that a loss may rely on.

    Attributes:
      channels: the number of channels C.
      stride: pixels of the image per cell of the map, or None if unknown.
      size: height and width of the map, or None if unknown.
      scores: True if the map holds class scores.
      classified: the number of channels that the classifier reads, or None if unknown.
    """

    channels: int
    stride: int | None = None
    size: tuple[int, int] | None = None
    scores: bool = False
    classified: int | None = None

    def size_on(self, images: tuple[int, ...] | None) -> tuple[Any, Any]:
        """Returns height and width of the map for an image size, or "h" and "w" if unknown."""
        if images is not None and self.stride:
            height, width = (-(-extent // self.stride) for extent in images)
            return height, width
        return self.size or ("h", "w")


def spec_of(name: str, value: Any, image_size: tuple[int, int] | None = None) -> Spec:
    """Returns the spec of a map.

    Args:
      name: the name of the map.
      value: an array or `jax.ShapeDtypeStruct` `[B, h, w, C]`, a `Classification` of these, or a
        `Spec`.
      image_size: height and width of the images, if known.

    Raises:
      ValueError: if the value is not a map.
    """
    if isinstance(value, Spec):
        return dataclasses.replace(value, scores=value.scores or name in SCORES)
    classified = None
    if isinstance(value, Classification):
        classified = int(value.inputs.shape[-1])
        value = value.logits
    if len(getattr(value, "shape", ())) != 4:
        found = list(value.shape) if hasattr(value, "shape") else type(value).__name__
        raise ValueError(f'the map "{name}" must be [B, h, w, C], channels last; it is {found}')
    _, height, width, channels = value.shape
    stride = None
    if image_size:
        # The longer side tells strides such as 14 and 16 apart.
        extent, cells = max(zip(image_size, (height, width), strict=True))
        stride = max(1, round(extent / cells))
        if not fits((height, width), image_size, stride):
            raise ValueError(
                f'the map "{name}" is {list(value.shape)} on images of {image_size[0]} x '
                f"{image_size[1]}, but no stride gives this height and width; the last axis must "
                "hold the channels"
            )
    scores = name in SCORES or classified is not None
    return Spec(channels, stride, (height, width), scores, classified)


def fits(size: tuple[int, ...], image_size: tuple[int, ...], stride: int) -> bool:
    """Returns True if a map of this stride may have this height and width."""
    wanted = [-(-extent // stride) for extent in image_size]
    # Pooling whose last window may be cut off adds a row and a column.
    return all(abs(found - right) <= 1 for found, right in zip(size, wanted, strict=True))


def array_of(value: Array | Classification) -> Float[Array, "B h w C"]:
    """Returns the array of a map."""
    return value.logits if isinstance(value, Classification) else value


def zeros_of(spec: Spec, images: tuple[int, ...]) -> Array | Classification:
    """Returns a map of zeros for two images, as the spec describes it."""
    size = spec.size or tuple(-(-extent // (spec.stride or 1)) for extent in images)
    zeros = jnp.zeros((2, *size, spec.channels))
    if spec.classified is None:
        return zeros
    kernel = jnp.zeros((spec.classified, spec.channels))
    inputs = jnp.zeros((2, *size, spec.classified))
    return Classification(zeros, inputs, kernel, jnp.zeros(spec.channels))
