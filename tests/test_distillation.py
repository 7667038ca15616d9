"""Distillation terms: how a config becomes them, and what they compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import config, losses
from kdjax.distillation import terms
from kdjax.distillation.objective import Objective
from kdjax.distillation.schedules import SCHEDULES
from kdjax.errors import UserError
from kdjax.models import FeatureSpec, SegmentationOutput

STUDENT = {"stage4": FeatureSpec(6, 8), "head": FeatureSpec(4, 8), "logits": FeatureSpec(3, 8)}
TEACHER = {"stage4": FeatureSpec(9, 8), "head": FeatureSpec(4, 8), "logits": FeatureSpec(3, 8)}


def output(specs, size=(5, 6), seed=0):
    keys = jax.random.split(jax.random.key(seed), len(specs))
    maps = {
        name: jax.random.normal(key, (2, *size, spec.channels))
        for key, (name, spec) in zip(keys, specs.items(), strict=True)
    }
    return SegmentationOutput(maps.pop("logits"), None, maps)


def resolve(**entries):
    return terms.resolve(entries, STUDENT, TEACHER)


def test_a_term_takes_its_defaults_from_the_authors_recipe():
    entry = config.term("cwd")
    assert (entry["weight"], entry["temperature"]) == (3.0, 4.0)
    (term,) = resolve(cwd=entry)
    value = terms.values((term,), {}, output(STUDENT), output(TEACHER, seed=1))["cwd"]
    expected = losses.cwd(output(STUDENT).logits, output(TEACHER, seed=1).logits, temperature=4.0)
    assert float(value) == pytest.approx(float(expected.mean()), rel=1e-6)


def test_adapter_only_where_channels_differ_and_it_learns():
    resolved = resolve(
        same=config.term("cwd", student="head", teacher="head"),
        other=config.term("cwd", student="stage4", teacher="stage4"),
    )
    adapters = terms.init_adapters(resolved, jax.random.key(0))
    assert jax.tree.map(jnp.shape, adapters) == {"other": (6, 9)}

    def total(adapters):
        found = terms.values(resolved, adapters, output(STUDENT), output(TEACHER, seed=1))
        return sum(found.values())

    assert float(jnp.abs(jax.grad(total)(adapters)["other"]).max()) > 0


@pytest.mark.parametrize(("side", "size"), [("teacher", (5, 6)), ("student", (10, 12))])
def test_sizes_that_differ_are_resized_by_the_stated_side(side, size):
    (term,) = resolve(kl=config.term("pixelwise_kl", resize=side))
    ours, theirs = output(STUDENT), output(TEACHER, (10, 12), seed=1)
    found = terms.values((term,), {}, ours, theirs)["kl"]
    resized = [
        jax.image.resize(o.logits, (2, *size, 3), "bilinear", antialias=False)
        for o in (ours, theirs)
    ]
    assert float(found) == pytest.approx(float(losses.pixelwise_kl(*resized).mean()), rel=1e-5)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"loss": "cwdd"}, 'unknown loss "cwdd" in a term: did you mean "cwd"'),
        ({}, "config.terms.t names no loss"),
        ({"loss": "cwd", "temprature": 1.0}, 't.temprature: no such key.*"temperature"'),
        ({"loss": "cwd", "weight": "3"}, "config.terms.t.weight is '3'; it must be like 3.0"),
        ({"loss": "cwd", "schedule": "linar"}, 't.schedule is "linar": did you mean "linear"'),
        ({"loss": "cwd", "resize": "both"}, 't.resize is "both"'),
        (
            {"loss": "cwd", "student": "stage9"},
            't.student: the student has no feature "stage9"; it has stage4, head, logits',
        ),
        ({"loss": "cwd", "teacher": "aux_logits"}, 'the teacher has no feature "aux_logits"'),
    ],
)
def test_a_wrong_entry_names_itself_and_what_would_be_right(entry, message):
    with pytest.raises(UserError, match=message):
        resolve(t=entry)


def test_reserved_names_and_other_classes_are_refused():
    with pytest.raises(UserError, match="always logged"):
        resolve(loss=config.term("cwd"))
    with pytest.raises(UserError, match="scores 3 classes and the teacher 7"):
        terms.resolve({"cwd": config.term("cwd")}, STUDENT, TEACHER | {"logits": FeatureSpec(7, 8)})


def test_schedules_go_from_weight_to_final_weight():
    progress = jnp.array([0.0, 0.5, 1.0])
    expected = {"constant": [2, 2, 2], "linear": [2, 1.5, 1], "cosine": [2, 1.5, 1]}
    for name, values in expected.items():
        np.testing.assert_allclose(SCHEDULES[name](2.0, 1.0)(progress), values, rtol=1e-6)


def test_objective_is_the_weighted_sum_of_its_named_parts():
    resolved = resolve(
        kl=config.term("pixelwise_kl", weight=2.0, schedule="linear", final_weight=0.0)
    )
    labels = jax.random.randint(jax.random.key(2), (2, 10, 12), 0, 3).at[0, :3].set(255)
    ours, theirs = output(STUDENT), output(TEACHER, seed=1)
    ours = ours.replace(aux_logits=-ours.logits)
    loss, parts = Objective(1.0, 0.4, resolved)(ours, theirs, labels, {}, jnp.array(0.25))
    assert parts.keys() == {"loss", "cross_entropy", "auxiliary_cross_entropy", "kl"}
    expected = parts["cross_entropy"] + 0.4 * parts["auxiliary_cross_entropy"] + 1.5 * parts["kl"]
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    resized = jax.image.resize(ours.logits, (2, 10, 12, 3), "bilinear", antialias=False)
    pixels = losses.cross_entropy(resized, labels)
    mean = float(pixels.sum() / (labels != 255).sum())
    assert float(parts["cross_entropy"]) == pytest.approx(mean, rel=1e-5)
