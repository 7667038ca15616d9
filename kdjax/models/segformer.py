"""SegFormer (Xie et al., NeurIPS 2021) as four projects build it."""

from typing import Any

import jax.numpy as jnp
from flax import nnx

from kdjax.models.mix_transformer import MixTransformer
from kdjax.models.mlp_head import LinearProjection, MLPHead
from kdjax.models.segmenter import Segmenter


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


def _linear(
    size: str,
    layer_norms: dict[str, float],
    head_options: dict[str, Any],
    *,
    num_classes: int,
    width: int,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
) -> Segmenter:
    """SegFormer with linear projections, and a wider head from B2 on."""
    backbone = MixTransformer(size, width=width, **layer_norms, dtype=dtype, rngs=rngs)
    head = MLPHead(
        backbone.feature_specs,
        (4 if size in ("b0", "b1") else 12) * width,
        num_classes,
        projection=LinearProjection,
        **head_options,
        dtype=dtype,
        rngs=rngs,
    )
    return Segmenter(backbone, head, None, num_classes=num_classes, dtype=dtype)


def segformer_linear(size: str, *, auxiliary: bool, **settings: Any) -> Segmenter:
    """Builds HuggingFace's SegFormer, whose layer norms all have another epsilon.

    It has no auxiliary head, whatever `auxiliary` says.
    """
    del auxiliary
    return _linear(size, {"epsilon": 1e-5}, {}, **settings)


# Of the authors' layer norms, those behind a convolution have PyTorch's own epsilon.
AUTHORS_NORMS = {"epsilon": 1e-6, "conv_epsilon": 1e-5}


def segformer_nvlabs(size: str, *, auxiliary: bool, **settings: Any) -> Segmenter:
    """Builds the authors' own SegFormer.

    It has no auxiliary head, whatever `auxiliary` says.
    """
    del auxiliary
    return _linear(size, AUTHORS_NORMS, {}, **settings)


def segformer_cirkd(size: str, *, auxiliary: bool, **settings: Any) -> Segmenter:
    """Builds CIRKD's SegFormer: that of the authors without dropout in the head.

    It has no auxiliary head, whatever `auxiliary` says.
    """
    del auxiliary
    return _linear(size, AUTHORS_NORMS, {"dropout": 0.0}, **settings)
