"""Running mean and covariance of the features of each class, and what they do to scores."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from kdjax.losses._arrays import check_labels, check_map, einsum, is_class, shape_of, sum_over_first


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["count", "mean", "covariance"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class ClassStatistics:
    """Count, mean and (biased) covariance of the features seen in each class.

    The moments of all pixels so far, whatever their order and their division into batches; under
    `jit` with the batch spread over devices, those of the whole batch. Inside `shard_map` each
    device sees its own pixels: name the axes (`update(..., axis_name="data")`), or `merge` what the
    devices found. A pytree of arrays without a gradient, to be kept in the training state.

    Up to float32's rounding, that is: each update rounds mean and covariance once, and one whose
    pixels are less than about 1e-7 of those seen in a class does not move them any more.

    Attributes:
      count: Pixels seen, int32 `[K]`: exact, however few a batch adds, up to 2^31 - 1, where it
        stays.
      mean: float32 `[K, A]`.
      covariance: float32 `[K, A]` (the diagonal, as ISDA and FAKD use it) or `[K, A, A]`.

    Source:
      The online estimator of ISDA (Wang et al., NeurIPS 2019), in the form of the authors' code.
      There every GPU keeps an estimate of its own pixels; this one is of all of them.

    Example:
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
        """Statistics with the pixels of one batch added.

        Args:
          features: `[..., H, W, A]`, any floating type; they receive no gradient.
          labels: Class indices `[..., H, W]`, nearest-resized to the features' size. Labels that
            are `ignore_label`, or no class, are left out, whatever the features are there.
          ignore_label: The label of pixels that do not count.
          axis_name: Inside `shard_map`, the mesh axes over which the pixels are spread; the
            statistics are then those of all of them, and the same on every device.

        Raises:
          TypeError: If the features are not floating point or the labels not integers.
          ValueError: If shapes do not fit.
        """
        check_map("features", features)
        if features.shape[-1] != self.mean.shape[-1]:
            raise ValueError(
                f"features must have the {self.mean.shape[-1]} channels of the statistics, "
                f"got {shape_of(features)}"
            )
        check_labels(labels, features, "features")
        features = jax.lax.stop_gradient(features).astype(jnp.float32)
        features = features.reshape(-1, features.shape[-1])
        member = is_class(labels.reshape(-1), len(self.count), ignore_label)
        # Selected, as 0 times what is not finite would reach every class.
        counted = jnp.any(member, axis=-1, keepdims=True)

        def everywhere(total):
            return total if axis_name is None else jax.lax.psum(total, axis_name)

        # Twice over the batch, first for the means and then around them: E[x^2] - E[x]^2 would
        # lose the variance of features far from zero.
        count = everywhere(jnp.sum(member, axis=0, dtype=jnp.int32))
        seen = jnp.maximum(count, 1).astype(jnp.float32)
        member = member.astype(jnp.float32)
        mean = _over_pixels("nk,na->ka", member, jnp.where(counted, features, 0.0))
        mean = everywhere(mean) / seen[:, None]
        centred = jnp.where(counted, features - einsum("nk,ka->na", member, mean), 0.0)
        if self.covariance.ndim == 2:
            moment = _over_pixels("nk,na->ka", member, jnp.square(centred))
        else:
            # Class by class: pixels x classes x channels would be too much at a time.
            moment = jax.lax.map(
                lambda weight: _over_pixels("na,nb->ab", weight[:, None] * centred, centred),
                member.T,
            )
        covariance = everywhere(moment) / _like(seen, moment)
        return self.merge(ClassStatistics(count, mean, covariance))

    def merge(self, other: ClassStatistics) -> ClassStatistics:
        """Statistics of the pixels of both.

        Raises:
          ValueError: If the two do not have the same shapes.
        """
        if self.covariance.shape != other.covariance.shape:
            raise ValueError(
                "both statistics must have the same shape, got covariances "
                f"{shape_of(self.covariance)} and {shape_of(other.covariance)}"
            )
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


# Where counting ends.
_MOST = 2**31 - 1


def _over_pixels(equation, left, right):
    """A product summed over pixels, which may be spread over devices."""
    mesh = jax.typeof(right).sharding.mesh
    # Along Explicit axes, a sum over what is spread has to be told where it shall be: everywhere.
    explicit = AxisType.Explicit in mesh.axis_types
    sharding = NamedSharding(mesh, PartitionSpec()) if explicit else None
    return einsum(equation, left, right, out_sharding=sharding)


def _like(per_class, array):
    """Shapes `[K]` to be multiplied with `[K, ...]`."""
    return per_class.reshape(-1, *[1] * (array.ndim - 1))


def weight_spread(kernel, covariance, member, anchor):
    """`(w_j - v)' Sigma_y (w_j - v)` for every class j, with `v = sum_c anchor_c w_c`.

    `member` `[..., C]` marks the class y and selects the covariance; a row of zeros selects none.
    """
    if covariance.ndim == 2:
        variance = einsum("...k,ka->...a", member, covariance)
        centre = einsum("...c,ac->...a", anchor, kernel)
        return (
            einsum("...a,aj->...j", variance, jnp.square(kernel))
            - 2 * einsum("...a,aj->...j", variance * centre, kernel)
            + jnp.sum(variance * jnp.square(centre), axis=-1, keepdims=True)
        )

    # Class by class, in the space of classes: one covariance per pixel would not fit anywhere.
    def class_spread(of_class):
        member, covariance = of_class
        gram = einsum("ai,ab,bj->ij", kernel, covariance, kernel)
        towards = einsum("...c,cj->...j", anchor, gram)
        spread = jnp.diagonal(gram) - 2 * towards
        spread += jnp.sum(towards * anchor, axis=-1, keepdims=True)
        return member[..., None] * spread

    return sum_over_first(class_spread, (jnp.moveaxis(member, -1, 0), covariance))


def log_sum_growth(scores, added, axis):
    """How much `log sum exp` grows when something is added to the scores; 0 if all are -inf."""
    largest = jax.lax.stop_gradient(jnp.max(scores, axis, keepdims=True))
    none = largest == -jnp.inf
    scores = jnp.where(none, 0.0, scores - largest)
    growth = jax.nn.logsumexp(scores + added, axis) - jax.nn.logsumexp(scores, axis)
    return jnp.where(jnp.squeeze(none, axis), 0.0, growth)
