"""Batch norm folded into convolutions: in exports, and in the teacher of a training step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from kdjax.errors import UserError
from kdjax.models.layers import ConvNorm
from kdjax.models.network import Images, Network, NNXNetwork, Variables


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


@dataclasses.dataclass(frozen=True)
class FrozenNetwork:
    """A network that predicts inside a training step, its batch norms folded there.

    It takes the variables of `network` as they are, and folds them where the step casts kernels to
    the type that it computes in: in the same pass over them. On a GPU cuDNN adds the bias and
    rectifies while it convolves, where a batch norm reads and writes the whole map once more.

    Attributes:
      network: any; without a `ConvNorm` it runs as it is.
    """

    network: NNXNetwork

    def init(self, key: PRNGKeyArray, images: Images) -> Variables:
        """As `Network.init`."""
        return self.network.init(key, images)

    def apply(
        self,
        variables: Variables,
        images: Float[Array, "B H W 3"],
        *,
        train: bool,
        key: PRNGKeyArray | None,
    ) -> tuple[Any, Variables]:
        """As `Network.apply`; it cannot be trained."""
        module = self.network.module(variables)
        fold_where_possible(module)
        folded, arrays = NNXNetwork.of(module)
        return folded.apply(arrays, images, train=train, key=key)[0], variables


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
