"""Batch norm folded into convolutions: in exports, and in the teacher of a training step."""

from typing import TypeGuard

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models.layers import Conv, ConvNorm, Linear
from kdjax.models.network import Network, NNXNetwork, Variables
from kdjax.utils.errors import UserError


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


def fold_batch_norm(network: Network, variables: Variables) -> tuple[NNXNetwork, Variables]:
    """Returns a network that predicts the same, up to rounding, without any batch norm.

    Every `ConvNorm` takes the scale of its norm into its kernel, and the rest becomes the bias of
    its convolution; full and depthwise kernels both end with the output channels. In bfloat16
    other products are rounded, so that predictions differ as much as they do from float32.

    Args:
      network: one of Flax NNX, built of kdjax's `ConvNorm`s; one that is folded already stays so.
      variables: its arrays.

    Raises:
      UserError: for another network, whose batch norms are not known here.
    """
    if not isinstance(network, NNXNetwork):
        raise UserError("batch norm can be folded in networks of Flax NNX alone; leave it as it is")
    module = network.module(variables)
    if not fold_where_possible(module):
        raise UserError("there is no kdjax.models.layers.ConvNorm whose batch norm could be folded")
    return NNXNetwork.of(module)


class FrozenNetwork(NNXNetwork):
    """A network in bfloat16 that only predicts: the teacher of a training step.

    Its batch norms are folded. On a GPU cuDNN adds the bias and rectifies while it convolves, where
    a batch norm reads and writes the whole map once more. The kernels and biases that convolutions
    and linear layers cast to bfloat16 whenever they are called are stored in bfloat16, which halves
    their memory and changes no value. All other arrays stay as they are.

    Args:
      network: the network, as `can_freeze` requires it; without kdjax's layers it stays the same.
    """

    def __init__(self, network: NNXNetwork):
        self._network = network
        super().__init__(lambda rngs: _frozen(network.fresh(rngs)))

    def freeze(self, variables: Variables) -> Variables:
        """Returns this network's variables from those of the network that it was made from."""

        @jax.jit
        def frozen(variables: Variables) -> Variables:
            return NNXNetwork.of(_frozen(self._network.module(variables)))[1]

        return frozen(variables)


def can_freeze(network: Network, dtype: str) -> TypeGuard[NNXNetwork]:
    """Returns whether `FrozenNetwork` takes a network that computes in `dtype`.

    In float32 folding would round otherwise, and change published results.
    """
    return dtype == "bfloat16" and isinstance(network, NNXNetwork)


def _frozen(module: nnx.Module) -> nnx.Module:
    fold_where_possible(module)
    for _, part in nnx.iter_modules(module):
        # Only these are known to read their arrays in `dtype` and in no other type.
        if type(part) is Conv or type(part) is Linear:
            part.kernel = nnx.Param(part.kernel[...].astype(part.dtype))
            if part.bias is not None:
                part.bias = nnx.Param(part.bias[...].astype(part.dtype))
    return module


def fold_where_possible(module: nnx.Module) -> int:
    """Folds a module in place; returns how many `ConvNorm`s it has, those folded before too."""
    found = [part for _, part in nnx.iter_modules(module) if isinstance(part, ConvNorm)]
    for part in found:
        if isinstance(part.norm, nnx.BatchNorm):
            _fold(part)
    return len(found)


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
