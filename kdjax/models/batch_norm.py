"""PyTorch's batch norm: over the whole batch, over each device's part of it, or frozen."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models.adapters import NNXNetwork
from kdjax.models.network import Network
from kdjax.utils.errors import UserError


class _Statistic(nnx.BatchStat):
    """A running statistic, which is always assigned as a whole.

    Flax first compares the sharding of the old and the new value. In a trace, this is slow: see
    `kdjax.models.adapters.traced_rngs`. Tracing the step of an HRNet-W18 took two minutes.
    """

    def set_value(self, value: Array, **index: Any) -> None:
        super().set_value(value)


class BatchNorm(nnx.BatchNorm):
    """Batch norm with PyTorch's constants and running statistics; its momentum of 0.1 is 0.9 here.

    PyTorch normalizes with the biased variance of the batch and keeps the unbiased one as the
    running variance. Flax keeps the biased one, which is a seventh smaller if eight images are
    pooled to one pixel each.

    The variance is the mean square of the centered values, in two passes over the batch as in
    PyTorch. The mean square less the squared mean loses all digits if the mean is large compared
    with the deviation.

    Under jit with a sharded batch, the statistics are those of the global batch, like SyncBN's.

    Attributes:
      groups: number of consecutive parts of the batch with their own statistics, like devices
        without SyncBN. The running statistics take the mean over the parts.
      frozen: also training normalizes with the running statistics, and does not change them. Scale
        and bias are trained (mmsegmentation's `norm_eval`).
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
        """Normalizes. With the statistics of the batch, also updates the running ones."""
        if use_running_average or self.frozen:
            return super().__call__(x, use_running_average=True)
        if x.shape[0] % self.groups:
            raise ValueError(f"a batch of {x.shape[0]} cannot be cut into {self.groups} groups")
        grouped = x.reshape(self.groups, -1, *x.shape[1:]).astype(jnp.float32)
        axes = (1, 2, 3)
        mean = grouped.mean(axes, keepdims=True)
        centered = grouped - mean
        var = jnp.square(centered).mean(axes, keepdims=True)
        count = grouped[0, ..., 0].size
        # A single value has no unbiased variance. PyTorch refuses to train on it.
        for kept, new in ((self.mean, mean), (self.var, var * (count / max(count - 1, 1)))):
            average = new.mean(0).reshape(-1)
            kept[...] = self.momentum * kept[...] + (1 - self.momentum) * average
        assert self.scale is not None
        assert self.bias is not None
        multiplier = self.scale[...] * jax.lax.rsqrt(var + self.epsilon)
        return (centered * multiplier + self.bias[...]).reshape(x.shape).astype(self.dtype)


def _batch_norms(net: Any) -> list[BatchNorm]:
    modules = nnx.iter_modules(net) if isinstance(net, nnx.Module) else ()
    return [module for _, module in modules if isinstance(module, BatchNorm)]


def group_batch_norm(net: nnx.Module, groups: int) -> int:
    """Gives each of `groups` parts of a training batch its own batch statistics.

    Returns:
      The number of `BatchNorm`s in the network.
    """
    found = _batch_norms(net)
    for module in found:
        module.groups = groups
    return len(found)


def freeze_batch_norm(net: nnx.Module) -> int:
    """Freezes the running statistics of a network's `backbone`.

    Returns:
      The number of `BatchNorm`s in the backbone.
    """
    found = _batch_norms(getattr(net, "backbone", None))
    for module in found:
        module.frozen = True
    return len(found)


def with_batch_norm(network: Network, kind: str, parts: int) -> Network:
    """Returns the network with the batch norm of `config.student.batch_norm`.

    Args:
      network: must contain `BatchNorm`s unless `kind` is "global".
      kind: "global"; "per_device", with separate statistics for each part of a batch; or "frozen",
        with the stored statistics of the backbone.
      parts: number of devices that share a batch.

    Raises:
      UserError: if the network has no `BatchNorm`.
    """
    if kind == "global":
        return network
    where = ' in its "backbone"' if kind == "frozen" else ""
    refused = UserError(
        f'config.student.batch_norm is "{kind}", which needs a network of Flax NNX with '
        f'kdjax.models.BatchNorm{where}; set it to "global"'
    )

    def change(module: nnx.Module) -> None:
        found = freeze_batch_norm(module) if kind == "frozen" else group_batch_norm(module, parts)
        if not found:
            raise refused

    if not isinstance(network, NNXNetwork):
        raise refused
    return network.changed(change)
