"""PHI-S: the matrix that standardizes features."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kdjax.losses._arrays import einsum
from kdjax.losses._checks import check_shape


def phi_s(covariance: Float[Array, "D D"]) -> Float[Array, "D D"]:
    """PHI-S: the matrix that gives every channel a variance of 1 and scales all directions alike.

    `(x - mean) @ matrix` has a variance of 1 in each of its D channels. The matrix is a rotation
    and one scale, so that distances keep their proportions: `matrix @ matrix.T` is the identity
    divided by v, the mean variance of x, and `v * matrix.T` is the inverse.

    Args:
      covariance: of the features, `[D, D]`, as one entry of a full `ClassStatistics.covariance`.

    Returns:
      float32 `[D, D]`.

    Source:
      Ranzinger et al., "PHI-S: distribution balancing for label-free multi-teacher distillation"
      (2024), the authors' example: the principal axes, rotated by a Hadamard matrix so that each
      channel has an equal share of all axes. If no Hadamard matrix of Sylvester or Paley has D
      rows, a random rotation replaces it, and the variances are only near 1.
    """
    check_shape("covariance", covariance, (len(covariance), len(covariance)))
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
