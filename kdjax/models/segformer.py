"""SegFormer (Xie et al., NeurIPS 2021) as four projects build it."""

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
