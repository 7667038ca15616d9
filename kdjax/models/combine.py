"""Puts a head on a backbone, and an auxiliary head beside it."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx

from kdjax.models.fcn import FCNHead
from kdjax.models.segmenter import Segmenter


def combine(
    backbone: Callable[..., Any],
    head: Callable[..., Any],
    channels: int,
    auxiliary_channels: int,
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
      auxiliary_channels: of the auxiliary head, which reads "stage3"; 0 where there is none.
      auxiliary_head: builds it from what `head` takes and sources=.
      num_classes: K.
      width: channels of the first stage.
      auxiliary: whether to build the auxiliary head.
      dtype: compute dtype; parameters are float32.
      rngs: source of the initial parameters.
    """
    body = backbone(width=width, dtype=dtype, rngs=rngs)
    specs = body.feature_specs
    main = head(specs, channels * width, num_classes, dtype=dtype, rngs=rngs)
    beside = None
    if auxiliary and auxiliary_channels:
        beside = auxiliary_head(
            specs,
            auxiliary_channels * width,
            num_classes,
            sources=("stage3",),
            dtype=dtype,
            rngs=rngs,
        )
    return Segmenter(body, main, beside, num_classes=num_classes, dtype=dtype)
