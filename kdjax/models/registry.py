"""Networks by name."""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from flax import nnx

from kdjax.errors import UserError
from kdjax.models.fcn import FCNHead
from kdjax.models.psp import PSPHead
from kdjax.models.resnet import ResNetV1c
from kdjax.models.segformer import SIZES, segformer, segformer_linear
from kdjax.models.segmenter import Segmenter
from kdjax.suggest import nearest


def _pspnet(
    depth: int,
    head_share: int,
    *,
    num_classes: int,
    width: int,
    auxiliary: bool,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
) -> Segmenter:
    """PSPNet: `head_share` times the width in the head, half of that in the auxiliary head."""
    backbone = ResNetV1c(depth, width=width, dtype=dtype, rngs=rngs)
    specs = backbone.feature_specs
    channels = head_share * width
    head = PSPHead(specs, channels, num_classes, dtype=dtype, rngs=rngs)
    auxiliary_head = None
    if auxiliary:
        auxiliary_head = FCNHead(
            specs, channels // 2, num_classes, source="stage3", dtype=dtype, rngs=rngs
        )
    return Segmenter(
        backbone,
        head,
        auxiliary_head,
        num_classes=num_classes,
        dtype=dtype,
    )


NETWORKS: dict[str, Callable[..., Segmenter]] = {
    "pspnet_r18": partial(_pspnet, 18, 2),
    "pspnet_r34": partial(_pspnet, 34, 2),
    "pspnet_r50": partial(_pspnet, 50, 8),
    "pspnet_r101": partial(_pspnet, 101, 8),
    **{f"segformer_{size}": partial(segformer, size) for size in SIZES},
    **{f"segformer_linear_{size}": partial(segformer_linear, size) for size in SIZES},
}


def create(
    name: str,
    *,
    num_classes: int,
    rngs: nnx.Rngs,
    width: int = 64,
    auxiliary: bool = True,
    dtype: str | jnp.dtype = "float32",
) -> Segmenter:
    """Creates a network by name, with freshly initialised float32 parameters.

    Args:
      name: one of `NETWORKS`, as "pspnet_r18".
      num_classes: K, the number of class scores per pixel.
      rngs: source of the initial parameters.
      width: channels of the first stage, an even number; 64 is the published network and all other
        widths scale with it.
      auxiliary: whether to build the auxiliary head, which only training reads; SegFormer has none.
      dtype: compute dtype, "float32" or "bfloat16".

    Raises:
      UserError: for an unknown name (with the nearest one), width or dtype.
    """
    if name not in NETWORKS:
        raise UserError(f'unknown network "{name}": {nearest(name, NETWORKS)}')
    if num_classes < 1:
        raise UserError(f"num_classes is {num_classes}; a network needs at least one class")
    if width < 2 or width % 2:
        raise UserError(f"width is {width}; it must be even and positive (64 is as published)")
    dtype = jnp.dtype(dtype)
    if dtype not in (jnp.float32, jnp.bfloat16):
        raise UserError(f'dtype is "{dtype}"; compute in "float32" or "bfloat16"')
    return NETWORKS[name](
        num_classes=num_classes, width=width, auxiliary=auxiliary, dtype=dtype, rngs=rngs
    )
