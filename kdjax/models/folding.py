"""Folds batch norm into convolutions, for exports and for the teacher of a training step."""

from typing import TypeGuard

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models.adapters import NNXNetwork
from kdjax.models.layers import Conv, ConvNorm, Linear
from kdjax.models.network import Network, Variables
from kdjax.utils.errors import UserError


class Folded(nnx.Module):
    """The identity, which replaces batch norm in a folded network."""

    def __call__(
        self, x: Float[Array, "B H W C"], *, use_running_average: bool
    ) -> Float[Array, "B H W C"]:
        """Returns the map.

        Raises:
          ValueError: in training.
        """
        if not use_running_average:
            raise ValueError("batch norm was folded: this network predicts and cannot be trained")
        return x


def fold_batch_norm(network: Network, variables: Variables) -> tuple[NNXNetwork, Variables]:
    """Returns a network without batch norm that predicts the same, up to rounding.

    In every `ConvNorm`, the scale of the norm moves into the kernel, and the rest becomes the bias
    of the convolution. In bfloat16 other products are rounded, so predictions differ as much as
    they do from float32.

    Args:
      network: a network of Flax NNX with `ConvNorm`s; it may be folded already.
      variables: its arrays.

    Raises:
      UserError: for any other network.
    """
    if not isinstance(network, NNXNetwork):
        raise UserError("only networks of Flax NNX can fold batch norm")
    module = network.module(variables)
    if not fold_where_possible(module):
        raise UserError("the network has no kdjax.models.layers.ConvNorm to fold")
    return NNXNetwork.of(module)


class FrozenNetwork(NNXNetwork):
    """A network in bfloat16 that only predicts: the teacher of a training step.

    Its batch norms are folded. On a GPU, cuDNN adds the bias and applies ReLU while it convolves,
    but a batch norm reads and writes the whole map once more. Convolutions and linear layers cast
    their kernels and biases to bfloat16 in every call. Here these are stored in bfloat16, which
    halves their memory and changes no value.

    Args:
      network: accepted by `can_freeze`. Layers that are not kdjax's stay the same.
    """

    def __init__(self, network: NNXNetwork):
        self._network = network
        super().__init__(lambda rngs: _frozen(network.fresh(rngs)))

    def freeze(self, variables: Variables) -> Variables:
        """Converts variables of the original network to variables of this network."""

        @jax.jit
        def frozen(variables: Variables) -> Variables:
            return NNXNetwork.of(_frozen(self._network.module(variables)))[1]

        return frozen(variables)


def can_freeze(network: Network, dtype: str) -> TypeGuard[NNXNetwork]:
    """Returns True if `FrozenNetwork` accepts a network that computes in `dtype`.

    In float32, folding would change the rounding of published results.
    """
    return dtype == "bfloat16" and isinstance(network, NNXNetwork)


def _frozen(module: nnx.Module) -> nnx.Module:
    fold_where_possible(module)
    for _, part in nnx.iter_modules(module):
        # Only these surely read their arrays in no other type than `dtype`.
        if type(part) is Conv or type(part) is Linear:
            part.kernel = nnx.Param(part.kernel[...].astype(part.dtype))
            if part.bias is not None:
                part.bias = nnx.Param(part.bias[...].astype(part.dtype))
    return module


def fold_where_possible(module: nnx.Module) -> int:
    """Folds a module in place, and returns its number of `ConvNorm`s, folded before or now."""
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
