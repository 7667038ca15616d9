"""Running mean and covariance of the features of each class."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from kdjax.losses._arrays import einsum, is_class
from kdjax.losses._checks import check_labels, check_map, check_shape


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ClassStatistics:
    """Count, mean, and (biased) covariance of the features seen in each class.

    These are the moments of all pixels so far, in any order and any division into batches. Under
    `jit`, a batch that is split over devices counts as a whole. Inside `shard_map`, each device
    sees its own pixels: pass the axes (`update(..., axis_name="data")`), or `merge` the statistics
    of the devices. The class is a pytree of arrays without gradient, for the training state.

    Each update rounds mean and covariance to float32 once. An update that adds less than about 1e-7
    of the pixels seen in a class no longer changes them.

    Attributes:
      count: number of pixels seen, int32 `[K]`. It is exact up to 2^31 - 1, where it stays.
      mean: float32 `[K, A]`.
      covariance: float32 `[K, A]` (the diagonal, as in ISDA and FAKD) or `[K, A, A]`.

    Source:
      The online estimator of ISDA (Wang et al., NeurIPS 2019), in the form of the authors' code.
      Their code keeps an estimate on every GPU, of its own pixels; this one is of all pixels.

    Examples:
      >>> statistics = ClassStatistics.zeros(num_classes=19, channels=512)
      >>> statistics = statistics.update(features, labels)
      >>> loss = fakd_kl(features, kernel, bias, teacher_logits, labels, statistics.covariance,
      ...                strength=7.5 * progress)
    """

    count: Int[Array, " K"]
    mean: Float[Array, "K A"]
    covariance: Float[Array, "K A"] | Float[Array, "K A A"]

    @classmethod
    def zeros(cls, num_classes: int, channels: int, full: bool = False) -> ClassStatistics:
        """Statistics of no pixels, with a diagonal or a full covariance."""
        shape = (num_classes, channels, channels) if full else (num_classes, channels)
        return cls(
            count=jnp.zeros(num_classes, jnp.int32),
            mean=jnp.zeros((num_classes, channels), jnp.float32),
            covariance=jnp.zeros(shape, jnp.float32),
        )

    def update(
        self,
        features: Float[Array, "*batch H W A"],
        labels: Int[Array, "*batch H W"],
        ignore_label: int = 255,
        axis_name: str | tuple[str, ...] | None = None,
    ) -> ClassStatistics:
        """Returns the statistics with the pixels of one batch added.

        Args:
          features: `[..., H, W, A]`, any floating type; they receive no gradient.
          labels: class indices `[..., H, W]`, nearest-resized to the features' size. Pixels whose
            label is `ignore_label` or no class are left out, whatever their features are.
          ignore_label: the label of pixels that do not count.
          axis_name: inside `shard_map`, the mesh axes over which the pixels are split. The
            statistics are then those of all pixels, and the same on every device.
        """
        check_map("features", features)
        check_shape("features", features, (*features.shape[:-1], self.mean.shape[-1]))
        check_labels(labels, features, "features")
        features = jax.lax.stop_gradient(features).astype(jnp.float32)
        features = features.reshape(-1, features.shape[-1])
        member = is_class(labels.reshape(-1), len(self.count), ignore_label)
        # Selected, because 0 times a feature that is not finite would reach every class.
        counted = jnp.any(member, axis=-1, keepdims=True)

        def everywhere(total):
            return total if axis_name is None else jax.lax.psum(total, axis_name)

        # Two passes over the batch, one for the means and one for the deviations from them: the
        # formula E[x^2] - E[x]^2 would lose the variance of features far from zero.
        count = everywhere(jnp.sum(member, axis=0, dtype=jnp.int32))
        seen = jnp.maximum(count, 1).astype(jnp.float32)
        member = member.astype(jnp.float32)
        mean = _over_pixels("nk,na->ka", member, jnp.where(counted, features, 0.0))
        mean = everywhere(mean) / seen[:, None]
        centered = jnp.where(counted, features - einsum("nk,ka->na", member, mean), 0.0)
        if self.covariance.ndim == 2:
            moment = _over_pixels("nk,na->ka", member, jnp.square(centered))
        else:
            # Class by class, because pixels x classes x channels values would not fit in memory.
            moment = jax.lax.map(
                lambda weight: _over_pixels("na,nb->ab", weight[:, None] * centered, centered),
                member.T,
            )
        covariance = everywhere(moment) / _like(seen, moment)
        return self.merge(ClassStatistics(count, mean, covariance))

    def merge(self, other: ClassStatistics) -> ClassStatistics:
        """Returns the statistics of the pixels of both."""
        check_shape("the other covariance", other.covariance, self.covariance.shape)
        ours, added = (jnp.asarray(side.count, jnp.int32) for side in (self, other))
        count = ours + jnp.minimum(added, _MOST - ours)
        share = added / jnp.maximum(count, 1).astype(jnp.float32)
        apart = other.mean - self.mean
        if self.covariance.ndim == 2:
            between = jnp.square(apart)
        else:
            between = apart[:, :, None] * apart[:, None, :]
        of_other = _like(share, self.covariance)
        covariance = (1 - of_other) * self.covariance + of_other * other.covariance
        covariance += of_other * (1 - of_other) * between
        return ClassStatistics(count, self.mean + share[:, None] * apart, covariance)


# The largest count.
_MOST = 2**31 - 1


def _over_pixels(equation, left, right):
    """Returns a product summed over pixels, which may be split over devices."""
    mesh = jax.typeof(right).sharding.mesh
    # With Explicit axes, a sum over a split axis must name the sharding of its result: replicated.
    explicit = AxisType.Explicit in mesh.axis_types
    sharding = NamedSharding(mesh, PartitionSpec()) if explicit else None
    return einsum(equation, left, right, out_sharding=sharding)


def _like(per_class, array):
    """Reshapes `[K]` so that it multiplies `[K, ...]`."""
    return per_class.reshape(-1, *[1] * (array.ndim - 1))
