"""Inputs of a loss, and checks of what it learns and carries, for the tests of this folder."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from kdjax.distillation.loss import Inputs
from kdjax.training.checkpoints import Checkpoints
from kdjax.training.step import TrainState


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def given(student, teacher, labels=None, *, key=0, step=0):
    """Returns the inputs that a step passes to a loss."""
    valid = None if labels is None else jax.tree.map(lambda x: x != 255, labels)
    return Inputs(
        student=student,
        teacher=teacher,
        labels=labels,
        full_labels=None,
        valid=valid,
        classifier=None,
        progress=jnp.zeros(()),
        step=jnp.asarray(step),
        key=jax.random.key(key),
    )


def close(actual, expected, tolerance=1e-5):
    """Asserts that an array agrees with the reference, relative to the reference's norm."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{actual.shape} but expected {expected.shape}"
    error = np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), 1e-300)
    assert error <= tolerance, f"relative error {error:.2e}"


@functools.partial(jax.jit, static_argnums=0)
def measure(loss, params, state, inputs):
    """Value, state and what is logged, and the gradients by parameters and by the inputs' maps."""
    state = loss.update(state, inputs)

    def value(params, student, teacher):
        maps = dataclasses.replace(inputs, student=student, teacher=teacher)
        found = loss(maps, params, state)
        return found if isinstance(found, tuple) else (found, {})

    by = jax.value_and_grad(value, (0, 1, 2), has_aux=True)
    (found, logged), gradients = by(params, inputs.student, inputs.teacher)
    return found, state, logged, gradients


def over_devices(inputs):
    """The same, with the images over eight devices."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def put(leaf):
        spread = PartitionSpec("data") if leaf.ndim > 1 else PartitionSpec()
        return jax.device_put(leaf, NamedSharding(mesh, spread))

    return jax.tree.map(put, inputs)


def resumed_from(path, params, state):
    """Writes a term's state to a checkpoint of a run, and returns what is read back."""
    kept = TrainState(
        step=jnp.asarray(2),
        seed=jnp.asarray(0),
        params={"student": {}, "terms": {"t": params}},
        model_state={},
        opt_state=(),
        terms={"t": state},
        ema=None,
    )
    checkpoints = Checkpoints(path, {})
    checkpoints.save(2, kept)
    checkpoints.close()
    empty = jax.tree.map(jnp.zeros_like, kept)
    step, found, remarks = Checkpoints(path, {}).restore_latest(empty)
    assert (step, remarks) == (2, [])
    return found.terms["t"]
