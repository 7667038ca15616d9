"""Running mean and covariance of the features of each class, and their use in other losses."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
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
    """Count, mean, and (biased) covariance of the features seen in each class.

    These are the moments of all pixels so far, in any order and any division into batches. Under
    `jit`, a batch that is split over devices counts as a whole. Inside `shard_map`, each device
    sees its own pixels: pass the axes (`update(..., axis_name="data")`), or `merge` the statistics
    of the devices. The class is a pytree of arrays without gradient, for the training state.

    Each update rounds mean and covariance to float32 once. An update that adds less than about 1e-7
    of the pixels seen in a class no longer changes them.

    Attributes:
      count: Number of pixels seen, int32 `[K]`. It is exact up to 2^31 - 1, where it stays.
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
          labels: Class indices `[..., H, W]`, nearest-resized to the features' size. Pixels whose
            label is `ignore_label` or no class are left out, whatever their features are.
          ignore_label: The label of pixels that do not count.
          axis_name: Inside `shard_map`, the mesh axes over which the pixels are split. The
            statistics are then those of all pixels, and the same on every device.

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
        centred = jnp.where(counted, features - einsum("nk,ka->na", member, mean), 0.0)
        if self.covariance.ndim == 2:
            moment = _over_pixels("nk,na->ka", member, jnp.square(centred))
        else:
            # Class by class, because pixels x classes x channels values would not fit in memory.
            moment = jax.lax.map(
                lambda weight: _over_pixels("na,nb->ab", weight[:, None] * centred, centred),
                member.T,
            )
        covariance = everywhere(moment) / _like(seen, moment)
        return self.merge(ClassStatistics(count, mean, covariance))

    def merge(self, other: ClassStatistics) -> ClassStatistics:
        """Returns the statistics of the pixels of both.

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


def phi_s(covariance: Float[Array, "D D"]) -> Float[Array, "D D"]:
    """PHI-S: the matrix that gives every channel a variance of 1 and scales all directions alike.

    `(x - mean) @ matrix` has a variance of 1 in each of its D channels. The matrix is a rotation
    and one scale, so that distances keep their proportions: `matrix @ matrix.T` is the identity
    divided by v, the mean variance of x, and `v * matrix.T` is the inverse.

    Args:
      covariance: Of the features, `[D, D]`, as one entry of a full `ClassStatistics.covariance`.

    Returns:
      float32 `[D, D]`.

    Raises:
      ValueError: If the covariance is not square.

    Source:
      Ranzinger et al., "PHI-S: distribution balancing for label-free multi-teacher distillation"
      (2024), the authors' example: the principal axes, rotated by a Hadamard matrix so that each
      channel has an equal share of all axes. If no Hadamard matrix of Sylvester or Paley has D
      rows, a random rotation replaces it, and the variances are only near 1.
    """
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
        raise ValueError(f"covariance must be [D, D], got {shape_of(covariance)}")
    values, axes = jnp.linalg.eigh(covariance.astype(jnp.float32))
    # The sign of an axis is arbitrary, and another sign would give another target.
    largest = jnp.argmax(jnp.abs(axes), axis=0)
    axes = axes * jnp.sign(jnp.take_along_axis(axes, largest[None], 0))
    mean = jnp.mean(jnp.maximum(values, 0.0))
    turned = einsum("ae,ye->ay", axes, jnp.asarray(_hadamard(len(covariance)), jnp.float32))
    return turned * jax.lax.rsqrt(jnp.where(mean > 0, mean, 1.0))


@functools.cache
def _hadamard(size: int) -> np.ndarray:
    """Returns an orthogonal matrix whose entries have equal size, or nearly if none is known."""
    found = _signs(size)
    if found is None:
        drawn = np.random.default_rng(0).choice((-1.0, 1.0), (size, size))
        left, _, right = np.linalg.svd(drawn)
        return left @ right
    return found / np.sqrt(size)


def _signs(size: int) -> np.ndarray | None:
    """Returns a Hadamard matrix by the constructions of Sylvester and Paley, or None."""
    two = np.array([[1, 1], [1, -1]])
    if size <= 2:
        return two[:size, :size]
    if size % 4:
        return None
    if (half := _signs(size // 2)) is not None:
        return np.kron(two, half)
    if _is_prime(size - 1):
        return np.eye(size, dtype=int) + _conference(size - 1, -1)
    prime = size // 2 - 1
    if prime % 4 == 1 and _is_prime(prime):
        turned = np.array([[1, -1], [-1, -1]])
        return np.kron(_conference(prime, 1), two) + np.kron(np.eye(size // 2, dtype=int), turned)
    return None


def _conference(prime: int, sign: int) -> np.ndarray:
    """Returns Paley's matrix of quadratic residues, 0 on the diagonal, with a border of ones."""
    numbers = np.arange(prime)
    residue = np.isin(numbers, numbers[1:] ** 2 % prime)
    character = np.where(numbers == 0, 0, np.where(residue, 1, -1))
    matrix = np.ones((prime + 1, prime + 1), int)
    matrix[0, 0] = 0
    matrix[1:, 0] = sign
    matrix[1:, 1:] = character[(numbers[:, None] - numbers) % prime]
    return matrix


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % part for part in range(2, int(number**0.5) + 1))


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


def weight_spread(kernel, covariance, member, anchor):
    """Returns `(w_j - v)' Sigma_y (w_j - v)` for every class j, with `v = sum_c anchor_c w_c`.

    `member` `[..., C]` is the one-hot class y that selects the covariance. A row of zeros selects
    none.
    """
    if covariance.ndim == 2:
        variance = einsum("...k,ka->...a", member, covariance)
        centre = einsum("...c,ac->...a", anchor, kernel)
        return (
            einsum("...a,aj->...j", variance, jnp.square(kernel))
            - 2 * einsum("...a,aj->...j", variance * centre, kernel)
            + jnp.sum(variance * jnp.square(centre), axis=-1, keepdims=True)
        )

    # Class by class, because one covariance per pixel would not fit in memory.
    def class_spread(of_class):
        member, covariance = of_class
        gram = einsum("ai,ab,bj->ij", kernel, covariance, kernel)
        towards = einsum("...c,cj->...j", anchor, gram)
        spread = jnp.diagonal(gram) - 2 * towards
        spread += jnp.sum(towards * anchor, axis=-1, keepdims=True)
        return member[..., None] * spread

    return sum_over_first(class_spread, (jnp.moveaxis(member, -1, 0), covariance))


def log_sum_growth(scores, added, axis):
    """Returns the growth of `log sum exp` by what is added to the scores; 0 if all are -inf."""
    largest = jax.lax.stop_gradient(jnp.max(scores, axis, keepdims=True))
    none = largest == -jnp.inf
    scores = jnp.where(none, 0.0, scores - largest)
    growth = jax.nn.logsumexp(scores + added, axis) - jax.nn.logsumexp(scores, axis)
    return jnp.where(jnp.squeeze(none, axis), 0.0, growth)
