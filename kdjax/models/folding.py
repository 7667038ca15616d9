"""Folds batch norm into the convolution before it, for networks that only predict."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models.layers import ConvNorm
from kdjax.models.segmenter import Segmenter


class Folded(nnx.Module):
    """What stands in a folded network where batch norm stood: nothing is left to do."""

    def __call__(
        self, x: Float[Array, "B H W C"], *, use_running_average: bool
    ) -> Float[Array, "B H W C"]:
        """Returns the map as it is.

        Raises:
          ValueError: where batch statistics are asked for, as in training.
        """
        if not use_running_average:
            raise ValueError("batch norm was folded: this network predicts and cannot be trained")
        return x


def fold_batch_norm(net: Segmenter) -> Segmenter:
    """Returns a network that predicts the same, up to rounding, without any batch norm.

    Every `ConvNorm` takes the scale of its norm into its kernel, and the rest becomes the bias of
    its convolution; full and depthwise kernels both end with the output channels. `net` stays as
    it is. In bfloat16 other products are rounded, so that predictions differ as much as they do
    from float32.

    Args:
      net: any network of `kdjax.models`; one that is folded already stays so.
    """
    net = nnx.clone(net)
    for _, module in nnx.iter_modules(net):
        if isinstance(module, ConvNorm) and isinstance(module.norm, nnx.BatchNorm):
            _fold(module)
    return net


def _fold(module: ConvNorm) -> None:
    conv, norm = module.conv, module.norm
    assert norm.scale is not None
    assert norm.bias is not None
    scale = norm.scale[...] * jax.lax.rsqrt(norm.var[...] + norm.epsilon)
    before = 0.0 if conv.bias is None else conv.bias[...]
    conv.kernel[...] = conv.kernel[...] * scale
    conv.bias = nnx.Param(jnp.asarray(norm.bias[...] + (before - norm.mean[...]) * scale))
    conv.use_bias = True
    module.norm = Folded()  # pyright: ignore[reportAttributeAccessIssue]
