"""Batch norm as PyTorch's: over the whole batch, over each device's part of it, or frozen."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models.network import Network, NNXNetwork
from kdjax.utils.errors import UserError


class _Statistic(nnx.BatchStat):
    """A running statistic, which is always assigned whole.

    Flax would compare the sharding of the old and the new value first. One that is traced has none,
    and JAX gathers the text of an error that Flax drops from all operations so far (as in
    `kdjax.models.network`): to trace the step of an HRNet-W18 took two minutes.
    """

    def set_value(self, value: Array, **index: Any) -> None:
        super().set_value(value)


class BatchNorm(nnx.BatchNorm):
    """Batch norm with PyTorch's constants and running statistics; its momentum of 0.1 is 0.9 here.

    PyTorch normalises with the variance of the batch, n below the fraction line, and keeps the
    unbiased one, n - 1 below it, as the running variance. Flax keeps the former, which is a seventh
    less where eight images are pooled to one pixel each.

    The variance is the mean square of what is left when the mean is taken away, in two passes over
    the batch as PyTorch's: the mean of the squares less the square of the mean, in one pass, loses
    all digits where the mean is large beside the deviation.

    Under jit with a sharded batch the statistics and n are those of the global batch, as SyncBN's.
    With `groups`, the batch is that many consecutive parts, each with statistics of its own, as on
    as many devices without SyncBN; the running ones then take the mean over the parts.

    With `frozen`, training too normalises with the running statistics, and leaves them as they are;
    scale and bias learn (`norm_eval` of mmsegmentation).
    """

    def __init__(
        self,
        channels: int,
        *,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        super().__init__(channels, momentum=momentum, epsilon=epsilon, dtype=dtype, rngs=rngs)
        self.mean, self.var = _Statistic(self.mean[...]), _Statistic(self.var[...])
        self.groups = 1
        self.frozen = False

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Array, "B H W C"], *, use_running_average: bool
    ) -> Float[Array, "B H W C"]:
        """Normalises; with the statistics of the batch it also updates the running ones."""
        if use_running_average or self.frozen:
            return super().__call__(x, use_running_average=True)
        if x.shape[0] % self.groups:
            raise ValueError(f"a batch of {x.shape[0]} cannot be cut into {self.groups} groups")
        grouped = x.reshape(self.groups, -1, *x.shape[1:]).astype(jnp.float32)
        axes = (1, 2, 3)
        mean = grouped.mean(axes, keepdims=True)
        centred = grouped - mean
        var = jnp.square(centred).mean(axes, keepdims=True)
        count = grouped[0, ..., 0].size
        # Of a single value there is no unbiased variance; PyTorch refuses to train on it.
        for kept, new in ((self.mean, mean), (self.var, var * (count / max(count - 1, 1)))):
            average = new.mean(0).reshape(-1)
            kept[...] = self.momentum * kept[...] + (1 - self.momentum) * average
        assert self.scale is not None
        assert self.bias is not None
        multiplier = self.scale[...] * jax.lax.rsqrt(var + self.epsilon)
        return (centred * multiplier + self.bias[...]).reshape(x.shape).astype(self.dtype)


def group_batch_norm(net: nnx.Module, groups: int) -> int:
    """Gives each of `groups` parts of a training batch batch statistics of its own.

    Returns:
      How many batch norms of this kind the network has.
    """
    found = [module for _, module in nnx.iter_modules(net) if isinstance(module, BatchNorm)]
    for module in found:
        module.groups = groups
    return len(found)


def freeze_batch_norm(net: nnx.Module) -> int:
    """Keeps the running statistics of a network's `backbone`.

    Returns:
      How many batch norms of this kind its backbone has.
    """
    backbone = getattr(net, "backbone", None)
    modules = nnx.iter_modules(backbone) if isinstance(backbone, nnx.Module) else ()
    found = [module for _, module in modules if isinstance(module, BatchNorm)]
    for module in found:
        module.frozen = True
    return len(found)


def with_batch_norm(network: Network, kind: str, parts: int) -> Network:
    """The network with the batch norm that `config.student.batch_norm` asks for.

    Args:
      network: whose module has kdjax's batch norms, unless they stay as they are.
      kind: "global"; "per_device", with statistics of its own for each part of a batch; "frozen",
        with the statistics that its backbone came with.
      parts: devices that a batch is spread over.

    Raises:
      UserError: where it has none of kdjax's batch norms, which alone can do so.
    """
    if kind == "global":
        return network

    def change(module: Any) -> None:
        frozen = kind == "frozen"
        if not (freeze_batch_norm(module) if frozen else group_batch_norm(module, parts)):
            raise _no_batch_norm(kind)

    if not isinstance(network, NNXNetwork):
        raise _no_batch_norm(kind)
    return network.changed(change)


def _no_batch_norm(kind: str) -> UserError:
    where = ' in its "backbone"' if kind == "frozen" else ""
    return UserError(
        f'config.student.batch_norm is "{kind}", which needs a network of Flax NNX with '
        f'kdjax.models.BatchNorm{where}; set it to "global"'
    )
