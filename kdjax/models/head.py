"""What all heads share: a map made of the backbone's features, and the classifier that reads it."""

import abc
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.distillation import Classification
from kdjax.models.layers import Classifier
from kdjax.models.outputs import FeatureSpec


class Head(nnx.Module):
    """A head; a kind of head says in `read` what its classifier gets.

    Attributes:
      channels: of the map that the classifier reads.
      stride: of that map and of the scores.
      classifier: the classifier.
    """

    def __init__(
        self,
        channels: int,
        stride: int,
        num_classes: int,
        *,
        dropout: float = 0.1,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.channels, self.stride = channels, stride
        self.classifier = Classifier(channels, num_classes, dropout=dropout, dtype=dtype, rngs=rngs)

    @abc.abstractmethod
    def read(
        self, features: dict[str, Array], *, train: bool, rngs: nnx.Rngs | None
    ) -> Float[Array, "B h w D"]:
        """Makes the map that the classifier reads."""

    def __call__(
        self, features: dict[str, Array], *, train: bool, rngs: nnx.Rngs | None
    ) -> tuple[Classification, Float[Array, "B h w D"]]:
        """Returns the class scores and the map that the classifier reads (before its dropout)."""
        x = self.read(features, train=train, rngs=rngs)
        return self.classifier(x, train=train, rngs=rngs), x


class PyramidHead(Head):
    """One pyramid on the last stage: PSPNet's or DeepLabV3's.

    Args:
      pyramid: builds it from (in_channels, channels, dtype=, rngs=).
      specs: the features of the backbone.
      channels: of the pyramid's map.
      num_classes: K.
      dtype: compute dtype; parameters are float32.
      rngs: source of the initial parameters.
    """

    def __init__(
        self,
        pyramid: Callable[..., Any],
        specs: dict[str, FeatureSpec],
        channels: int,
        num_classes: int,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        last = specs["stage4"]
        self.pyramid = pyramid(last.channels, channels, dtype=dtype, rngs=rngs)
        super().__init__(channels, last.stride, num_classes, dtype=dtype, rngs=rngs)

    def read(  # noqa: D102
        self, features: dict[str, Array], *, train: bool, rngs: nnx.Rngs | None
    ) -> Float[Array, "B h w D"]:
        del rngs
        return self.pyramid(features["stage4"], train=train)
