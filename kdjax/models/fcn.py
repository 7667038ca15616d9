"""Plain convolutional heads (Long et al., CVPR 2015), as mmsegmentation's FCNHead."""

from collections.abc import Callable, Sequence
from functools import partial

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models.head import Head
from kdjax.models.layers import ConvNorm, resize
from kdjax.models.outputs import FeatureSpec


class FCNHead(Head):
    """Convolutions in a row and the classifier.

    Args:
      specs: the features of the backbone.
      channels: of the convolutions.
      num_classes: K.
      sources: the features that it reads: one, or several that are resized to the first and
        concatenated.
      num_convs: how many convolutions.
      size: of their kernels.
      concat_input: whether one more convolution reads the input beside the result.
      activation: behind every batch norm.
      dropout: before the classifier.
      dtype: compute dtype; parameters are float32.
      rngs: source of the initial parameters.
    """

    def __init__(
        self,
        specs: dict[str, FeatureSpec],
        channels: int,
        num_classes: int,
        *,
        sources: Sequence[str],
        num_convs: int = 1,
        size: int = 3,
        concat_input: bool = False,
        activation: Callable[[Array], Array] = nnx.relu,
        dropout: float = 0.1,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.sources = tuple(sources)
        in_channels = sum(specs[name].channels for name in self.sources)
        conv = partial(ConvNorm, activation=activation, dtype=dtype, rngs=rngs)
        self.convs = nnx.List([])
        for index in range(num_convs):
            read = channels if index else in_channels
            self.convs.append(conv(read, channels, size))
        self.merge = conv(in_channels + channels, channels, size) if concat_input else None
        stride = specs[self.sources[0]].stride
        super().__init__(channels, stride, num_classes, dropout=dropout, dtype=dtype, rngs=rngs)

    def read(  # noqa: D102
        self, features: dict[str, Array], *, train: bool, rngs: nnx.Rngs | None
    ) -> Float[Array, "B h w D"]:
        del rngs
        size = features[self.sources[0]].shape[1:3]
        inputs = jnp.concatenate([resize(features[name], size) for name in self.sources], axis=-1)
        x = inputs
        for conv in self.convs:
            x = conv(x, train=train)
        if self.merge is not None:
            x = self.merge(jnp.concatenate([inputs, x], axis=-1), train=train)
        return x
