"""Inputs, and every loss under one signature, for the tests of this folder."""

import functools
import typing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import settings, strategies

from kdjax import losses

# The same few examples on every run: a failure here is a failure everywhere.
few = settings(derandomize=True, deadline=None, max_examples=8, database=None)
seeds = strategies.integers(0, 10_000)

SHAPE = (2, 4, 5, 6)
CLASSES = CHANNELS = SHAPE[-1]


# The types are Any: the tests hand NumPy arrays to functions that are annotated with JAX's.


def normal(seed, shape=SHAPE, scale=1.0) -> Any:
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def labels(seed, shape=SHAPE[:-1], classes=CLASSES, ignored=0.2) -> Any:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, classes, shape)
    return np.where(rng.random(shape) < ignored, 255, values).astype(np.int32)


def head(seed, channels=CHANNELS, classes=CLASSES, full=False) -> Any:
    """Kernel, bias and a covariance for every class."""
    rng = np.random.default_rng(seed)
    kernel, bias = rng.normal(size=(channels, classes)), rng.normal(size=classes)
    root = rng.normal(size=(classes, channels, channels)) / np.sqrt(channels)
    covariance = root @ root.transpose(0, 2, 1)
    if not full:
        covariance = np.diagonal(covariance, axis1=1, axis2=2)
    return tuple(x.astype(np.float32) for x in (kernel, bias, covariance))


def close(actual, expected, tolerance=1e-5):
    """Asserts that an array agrees with the reference, relative to the reference's norm."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{actual.shape} but expected {expected.shape}"
    error = np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), 1e-300)
    assert error <= tolerance, f"relative error {error:.2e}"


def follows(gradient, function, x):
    """Asserts that a gradient agrees with changes of a float64 function in a few directions."""
    for seed in range(4):
        along = np.float64(normal(100 + seed, x.shape))
        change = (function(x + 1e-5 * along) - function(x - 1e-5 * along)) / 2e-5
        error = np.vdot(np.float64(gradient), along) - change
        assert abs(error) < 1e-5 * np.linalg.norm(gradient) * np.linalg.norm(along)


def with_full_covariance(function):
    """FAKD with a full covariance; for those tests that ask how it is computed."""
    return _fakd(function, full=True, strength=2.0)


def _fakd(function, full=False, **options):
    kernel, bias, covariance = head(7, full=full)

    def loss(student, teacher, labels):
        return function(student, kernel, bias, teacher, labels, covariance, **options)

    return loss


def _imitation(function, **options):
    return lambda student, teacher, labels: function(student, teacher, **options)


def _split(student, teacher, labels):
    """Each map as a pair of three channels."""
    maps = (jnp.split(features, 2, -1) for features in (student, teacher))
    return losses.dsd_pairs(*maps)


def _edges_alone(student, teacher, labels):
    # With so many pixels ignored as here, there would be no edge without one.
    labels = jnp.where(labels == 255, 0, labels)
    return losses.bpkd(student, teacher, labels, part="edge", window=3)


def _isda(student, teacher, labels):
    kernel, bias, covariance = head(7)
    return losses.isda_cross_entropy(student, kernel, bias, labels, covariance, strength=2.0)


def _upsampled(student, teacher, labels):
    labels = jnp.repeat(jnp.repeat(labels, 5, axis=-2), 3, axis=-1)
    return losses.upsampled_cross_entropy(student, labels)


# student, teacher [..., H, W, 6] and labels [..., H, W] to the unreduced terms.
IMITATION = {
    "pixelwise_kl": _imitation(losses.pixelwise_kl, temperature=2.0),
    "cwd": _imitation(losses.cwd),
    "l2": _imitation(losses.l2),
    "nfd-space": _imitation(losses.nfd),
    "nfd-batch_space": _imitation(losses.nfd, axes="batch_space"),
    "nfd-channel": _imitation(losses.nfd, axes="channel"),
    "nfd-all": _imitation(losses.nfd, axes="all"),
    "pfs-cosine": _imitation(losses.pfs),
    "pfs-softmax": _imitation(losses.pfs, similarity="softmax", temperature=0.5),
    "skd_pairwise": _imitation(losses.skd_pairwise, window=2),
    **{
        f"gap-{gap}": functools.partial(losses.gap_weighted_kl, gap=gap)
        for gap in ("probability", "cross_entropy", "total_variation")
    },
}
# Methods from other fields.
FIELD = {
    "attention_transfer": _imitation(losses.attention_transfer),
    "pkd": _imitation(losses.pkd),
    "dsd_pairs": _split,
    "cirkd_minibatch": _imitation(losses.cirkd_minibatch, temperature=0.5),
    "dist_inter": _imitation(losses.dist_inter),
    "dist_intra": _imitation(losses.dist_intra),
    "jml": losses.jml,
    "bpkd-body": functools.partial(losses.bpkd, window=3),
    "bpkd-edge": _edges_alone,
    "standardized_kl": _imitation(losses.standardized_kl),
    "dkd": losses.dkd,
    "wsld": losses.wsld,
    "ifvd": functools.partial(losses.ifvd, num_classes=CLASSES),
}
IMITATION |= FIELD
# Losses over all images of a batch, which need the axes over which the images are split.
TOGETHER = {
    "nfd-batch_space": _imitation(losses.nfd, axes="batch_space", axis_name="data"),
    "pkd": _imitation(losses.pkd, axis_name="data"),
    "dist_intra": _imitation(losses.dist_intra, axis_name="data"),
    "cirkd_minibatch": _imitation(losses.cirkd_minibatch, temperature=0.5, axis_name="data"),
    "jml": functools.partial(losses.jml, axis_name="data"),
}
AUGMENTED = {
    **{
        f"fakd_kl-{bound}": _fakd(losses.fakd_kl, strength=2.0, bound=bound)
        for bound in ("soft", "pairwise", "label", "student", "none")
    },
    "fakd_cwd": _fakd(losses.fakd_cwd, strength=2.0),
}
SUPERVISED = {
    "cross_entropy": lambda student, teacher, labels: losses.cross_entropy(student, labels),
    "upsampled_cross_entropy": _upsampled,
    "isda_cross_entropy": _isda,
}
EVERY = IMITATION | AUGMENTED | SUPERVISED


def gradients(loss):
    """The mean, the terms, and the gradients by student and teacher."""

    def mean(student, teacher, labels):
        values = loss(student, teacher, labels)
        return jnp.mean(values), values

    return jax.value_and_grad(mean, argnums=(0, 1), has_aux=True)


@functools.cache
def compiled(loss):
    """Compiles a loss once for all tests that only read numbers."""

    def evaluate(*arguments):
        (mean, values), (by_student, by_teacher) = gradients(loss)(*arguments)
        return Result(mean, values, by_student, by_teacher)

    return jax.jit(evaluate)


class Result(typing.NamedTuple):
    mean: jax.Array
    values: jax.Array
    by_student: jax.Array
    by_teacher: jax.Array
