"""Tests of every loss that has parameters or state, or draws random numbers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import thorough
from field import close, given, measure, normal

from kdjax import losses
from kdjax.distillation import Loss, Spec
from kdjax.distillation.methods import LOSSES
from kdjax.distillation.methods.af_dcd import AfDCD
from kdjax.distillation.methods.attn_fd import AttnFD
from kdjax.distillation.methods.cankd import CanKD
from kdjax.distillation.methods.cirkd import CIRKDMemory
from kdjax.distillation.methods.mas_kd import MasKD
from kdjax.distillation.methods.ofd import OFD
from kdjax.distillation.methods.phi_s import StandardizedL2
from kdjax.distillation.methods.skd import Holistic

ONE, TWO = ("a",), ("a", "logits")
# Each with nothing masked, as what is drawn for an image goes with its place in the batch.
TERMS: dict[str, Loss] = {
    "af_dcd": AfDCD(masked=0.0, pool=1, groups=3, temperature=1.0),
    "cankd": CanKD(student="a", teacher="a"),
    "attn_fd": AttnFD(student=ONE, teacher=ONE, reduction=2),
    "ofd": OFD(student=ONE, teacher=ONE, divisors=(1.0,), adapter="never"),
    "standardized_l2": StandardizedL2(standardize="channel", fitted_over=1),
    "cirkd_memory": CIRKDMemory(pixels=400, regions=40, pixels_per_class=64, storage="float32"),
    "holistic": Holistic(channels=(4,)),
    "mas_kd": MasKD(count=3),
}
# MGD is a part of Af-DCD.
OTHERS = {"mgd"}
CLASSES = 3
SPEC = Spec(CLASSES, scores=True)
LABELS = np.random.default_rng(0).choice([0, 1, 2, 255], (4, 8, 8)).astype(np.int32)
MAPS = 2 * normal(1, 4, 8, 8, CLASSES), normal(2, 4, 8, 8, CLASSES) + 0.2


def inputs_of(loss, student, teacher, labels):
    several = 0 if isinstance(loss.student, str) else len(loss.student)
    if several:
        student, teacher, labels = ((x,) * several for x in (student, teacher, labels))
    found = given(student, teacher, labels, step=1)
    full = labels[0] if several else labels
    return dataclasses.replace(found, progress=jnp.float32(0.5), full_labels=full)


@functools.cache
def begun(name):
    """Returns a new term's parameters and state. OFD and PHI-S have seen a batch."""
    loss = TERMS[name]
    specs = SPEC if isinstance(loss.student, str) else (SPEC,) * len(loss.student)
    params = jax.jit(lambda key: loss.init_params(key, specs, specs))(jax.random.key(0))
    state = loss.init_state(specs, specs)
    first = dataclasses.replace(inputs_of(loss, *MAPS, LABELS), step=jnp.asarray(0))
    return params, jax.jit(loss.update)(state, first)


def measured(name, student, teacher, labels=LABELS):
    return measure(TERMS[name], *begun(name), inputs_of(TERMS[name], student, teacher, labels))


@functools.partial(jax.jit, static_argnums=0)
def value_of(loss, params, state, inputs):
    found = loss(inputs, params, loss.update(state, inputs))
    return found[0] if isinstance(found, tuple) else found


def test_no_loss_is_left_out():
    assert LOSSES.keys() - losses.__all__ == TERMS.keys() | OTHERS


@pytest.mark.parametrize("name", thorough.after(2, [*TERMS]))
def test_extremes_are_finite(name):
    student, teacher = MAPS
    ignored = np.full_like(LABELS, 255)
    for maps in (
        (1e4 * student, 1e4 * teacher),
        (0 * student, 0 * teacher),
        (0 * student + 1, 0 * teacher - 1),
        (*MAPS, ignored),
    ):
        found = measured(name, *maps)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
        assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(found[3][2]))


@pytest.mark.parametrize("name", TERMS)
def test_the_order_and_the_doubling_of_images_and_half_precision(name):
    loss, (params, state) = TERMS[name], begun(name)
    expected = measured(name, *MAPS)[0]
    everything = (*MAPS, LABELS)
    if name != "cirkd_memory":  # whose vectors are drawn for a place in the batch
        close(measured(name, *(x[::-1] for x in everything))[0], expected, 1e-4)
        twice = inputs_of(loss, *(np.concatenate((x, x)) for x in everything))
        close(value_of(loss, params, state, twice), expected, 1e-4)
    # The tolerance is that of rounding: sums are in single precision, except for parameters.
    half = [jnp.asarray(x, jnp.bfloat16) for x in MAPS]
    found = value_of(loss, params, state, inputs_of(loss, *half, LABELS))
    assert found.dtype == jnp.float32
    rounded = measured(name, *(np.asarray(x, np.float32) for x in half))[0]
    close(found, rounded, 3e-2)
