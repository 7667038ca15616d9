"""Distillation terms: how a config becomes them, and what they compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import config, losses
from kdjax.distillation import entries as term_entries
from kdjax.distillation import labels as label_maps
from kdjax.distillation import terms
from kdjax.distillation.catalogue import LOSSES
from kdjax.distillation.objective import Objective
from kdjax.distillation.schedules import SCHEDULES
from kdjax.errors import UserError
from kdjax.models import Classification, FeatureSpec, SegmentationOutput

STUDENT = {"stage4": FeatureSpec(6, 8), "head": FeatureSpec(4, 8), "logits": FeatureSpec(3, 8)}
TEACHER = {"stage4": FeatureSpec(9, 8), "head": FeatureSpec(4, 8), "logits": FeatureSpec(3, 8)}
LABELS = jax.random.randint(jax.random.key(3), (2, 40, 48), 0, 3).at[0, :9].set(255)
HALF = jnp.array(0.5)


def output(specs, size=(5, 6), seed=0):
    keys = jax.random.split(jax.random.key(seed), len(specs) + 1)
    maps = {
        name: jax.random.normal(key, (2, *size, spec.channels))
        for key, (name, spec) in zip(keys, specs.items(), strict=False)
    }
    kernel = jax.random.normal(keys[-1], (specs["head"].channels, specs["logits"].channels))
    maps["logits"] = maps["head"] @ kernel + 0.5
    classifier = Classification(maps["logits"], maps["head"], kernel, jnp.full(3, 0.5))
    return SegmentationOutput(maps.pop("logits"), None, maps, {"logits": classifier})


def values(resolved, student, teacher, adapters=None, progress=HALF):
    """The terms' values after their class statistics have seen the batch."""
    statistics = terms.init_statistics(resolved, 3)
    statistics = terms.update_statistics(resolved, statistics, student, LABELS)
    return terms.values(resolved, adapters or {}, statistics, student, teacher, LABELS, progress)


def resolve(**entries):
    return term_entries.resolve(entries, STUDENT, TEACHER)


def test_a_term_takes_its_defaults_from_the_authors_recipe():
    entry = config.term("cwd")
    assert (entry["weight"], entry["temperature"]) == (3.0, 4.0)
    (term,) = resolve(cwd=entry)
    value = values((term,), output(STUDENT), output(TEACHER, seed=1))["cwd"]
    expected = losses.cwd(output(STUDENT).logits, output(TEACHER, seed=1).logits, temperature=4.0)
    assert float(value) == pytest.approx(float(expected.mean()), rel=1e-6)


def test_adapter_only_where_channels_differ_and_it_learns():
    resolved = resolve(
        same=config.term("cwd", student="head", teacher="head"),
        other=config.term("cwd", student="stage4", teacher="stage4"),
    )
    adapters = terms.init_adapters(resolved, jax.random.key(0))
    assert jax.tree.map(jnp.shape, adapters) == {"other": (6, 9)}
    two = resolve(**{name: config.term("nfd", student="stage4", teacher="stage4") for name in "ab"})
    first, second = terms.init_adapters(two, jax.random.key(0)).values()
    assert not np.allclose(first, second)

    def total(adapters):
        found = values(resolved, output(STUDENT), output(TEACHER, seed=1), adapters)
        return sum(found.values())

    assert float(jnp.abs(jax.grad(total)(adapters)["other"]).max()) > 0


@pytest.mark.parametrize(("side", "size"), [("teacher", (5, 6)), ("student", (10, 12))])
def test_sizes_that_differ_are_resized_by_the_stated_side(side, size):
    finer = TEACHER | {"logits": FeatureSpec(3, 4)}
    (term,) = term_entries.resolve({"kl": config.term("pixelwise_kl", resize=side)}, STUDENT, finer)
    ours, theirs = output(STUDENT), output(TEACHER, (10, 12), seed=1)
    found = values((term,), ours, theirs)["kl"]
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
        ({"loss": "cwd", "temprature": 1.0}, 't.temprature is no key of cwd.*"temperature"'),
        ({"loss": "cwd", "weight": "3"}, "config.terms.t.weight is '3'; it must be like 3.0"),
        ({"loss": "cwd", "weight": -3.0}, "config.terms.t.weight is -3.0; it must be 0 or more"),
        ({"loss": "cwd", "final_weight": np.nan}, "t.final_weight is nan; it must be .* finite"),
        ({"loss": "skd_pairwise", "window": 2.5}, "t.window is 2.5; it must be like 0, a whole"),
        ("cwd", "config.terms.t is 'cwd'; it must be a dict"),
        ({"loss": "cwd", "schedule": "linar"}, 't.schedule is "linar": did you mean "linear"'),
        ({"loss": "cwd", "resize": "both"}, 't.resize is "both"'),
        (
            {"loss": "cwd", "student": "stage9"},
            't.student: the student has no feature "stage9"; it has stage4, head, logits',
        ),
        ({"loss": "cwd", "teacher": "aux_logits"}, 'the teacher has no feature "aux_logits"'),
        ({"loss": "nfd", "axes": "pixels"}, "config.terms.t: axes must be one of 'space'"),
        ({"loss": "fakd_kl", "bound": "plugin"}, "t: bound must be one of 'soft', 'pairwise'"),
        ({"loss": "fakd_kl", "strength": -1.0}, "t: strength must be zero or a positive number"),
        ({"loss": "fakd_kl", "covariance": "ful"}, 't.covariance is "ful": did you mean "full"'),
        ({"loss": "cwd", "temperature": 0.0}, "t: temperature must be a positive number"),
        ({"loss": "fakd_kl", "student": "head"}, '"head"; fakd_kl needs class scores: logits$'),
        (
            {"loss": "isda_cross_entropy", "teacher": "logits"},
            "t.teacher is no key of isda_cross_entropy",
        ),
    ],
)
def test_a_wrong_entry_names_itself_and_what_would_be_right(entry, message):
    with pytest.raises(UserError, match=message):
        resolve(t=entry)


def test_reserved_names_and_other_classes_are_refused():
    with pytest.raises(
        UserError, match=r"config\.terms\.loss is the name of a metric that is always"
    ):
        resolve(loss=config.term("cwd"))
    with pytest.raises(UserError, match="scores 3 classes and the teacher 7"):
        term_entries.resolve(
            {"cwd": config.term("cwd")}, STUDENT, TEACHER | {"logits": FeatureSpec(7, 8)}
        )


@pytest.mark.parametrize(
    ("side", "change", "found"),
    [
        ("student", lambda x: x.transpose(0, 3, 1, 2), r"\[2, 4, 5, 6\]"),
        ("teacher", lambda x: x.transpose(0, 3, 1, 2), r"\[2, 9, 5, 6\]"),
        ("teacher", lambda x: x.reshape(2, 30, 9), r"\[2, 30, 9\]"),
        ("student", lambda x: jnp.repeat(x, 2, axis=1), r"\[2, 10, 6, 4\]"),
    ],
    ids=["channels first", "of the teacher", "tokens", "another stride"],
)
def test_a_map_that_is_none_of_its_network(side, change, found):
    resolved = resolve(mine=config.term("cwd", student="head", teacher="stage4"))
    name = resolved[0].student if side == "student" else resolved[0].teacher
    outputs = {"student": output(STUDENT), "teacher": output(TEACHER, seed=1)}
    features = outputs[side].features
    outputs[side] = outputs[side].replace(features=features | {name: change(features[name])})
    adapters = terms.init_adapters(resolved, jax.random.key(0))
    message = (
        rf'^config\.terms\.mine\.{side}: "{name}" of the {side} is {found}; .* must be \[2, 5, 6'
    )
    with pytest.raises(UserError, match=message):
        jax.eval_shape(
            lambda adapters: values(resolved, outputs["student"], outputs["teacher"], adapters),
            adapters,
        )


def test_schedules_go_from_weight_to_final_weight():
    progress = jnp.array([0.0, 0.5, 1.0])
    expected = {"constant": [2, 2, 2], "linear": [2, 1.5, 1], "cosine": [2, 1.5, 1]}
    for name, values in expected.items():
        np.testing.assert_allclose(SCHEDULES[name](2.0, 1.0)(progress), values, rtol=1e-6)


def test_objective_is_the_weighted_sum_of_its_named_parts():
    resolved = resolve(
        kl=config.term("pixelwise_kl", weight=2.0, schedule="linear", final_weight=0.0)
    )
    ours, theirs = output(STUDENT), output(TEACHER, seed=1)
    ours = ours.replace(aux_logits=-ours.logits)
    loss, parts, _ = Objective(1.0, 0.4, resolved)(ours, theirs, LABELS, {}, {}, jnp.array(0.25))
    assert parts.keys() == {"loss", "cross_entropy", "auxiliary_cross_entropy", "kl"}
    expected = parts["cross_entropy"] + 0.4 * parts["auxiliary_cross_entropy"] + 1.5 * parts["kl"]
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    # mmsegmentation's cross-entropies: over all pixels, of which some are ignored.
    over_all = Objective(1.0, 0.4, resolved, mean_over="all")
    _, fewer, _ = over_all(ours, theirs, LABELS, {}, {}, jnp.array(0.25))
    share = float((LABELS != 255).mean())
    assert share < 1
    for name in ("cross_entropy", "auxiliary_cross_entropy"):
        assert float(fewer[name]) == pytest.approx(share * float(parts[name]), rel=1e-5)
    resized = jax.image.resize(ours.logits, (2, 40, 48, 3), "bilinear", antialias=False)
    pixels = losses.cross_entropy(resized, LABELS)
    mean = float(pixels.sum() / (LABELS != 255).sum())
    assert float(parts["cross_entropy"]) == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_every_loss_is_a_term_with_one_entry(loss):
    resolved = resolve(t=config.term(loss))
    teacher = (
        output(TEACHER, seed=1) if term_entries.need_teacher({"t": config.term(loss)}) else None
    )
    adapters = terms.init_adapters(resolved, jax.random.key(0))

    def value(student):
        return values(resolved, student, teacher, adapters)["t"]

    found, gradient = jax.value_and_grad(value)(output(STUDENT))
    assert float(found) > 0
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))
    assert any(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradient))
    assert found.dtype == jnp.float32


def test_labels_of_a_smaller_map_are_those_under_the_centres_of_its_cells():
    labels = jnp.arange(48).reshape(1, 6, 8)
    np.testing.assert_array_equal(label_maps.nearest(labels, (2, 2))[0], [[10, 14], [34, 38]])
    np.testing.assert_array_equal(label_maps.nearest(labels, (6, 8)), labels)


def test_ignored_pixels_do_not_count_where_a_loss_reads_labels():
    resolved = resolve(
        gap=config.term("gap_weighted_kl", gap="total_variation"), fakd=config.term("fakd_kl")
    )
    ours, theirs = output(STUDENT), output(TEACHER, seed=1)
    small = label_maps.nearest(LABELS, (5, 6))
    assert bool((small == 255).any())
    moved = jnp.where((small == 255)[..., None], 7.0, 0.0)
    changed = theirs.replace(logits=theirs.logits + moved * jnp.arange(3.0))
    for name, value in values(resolved, ours, changed).items():
        assert float(value) == float(values(resolved, ours, theirs)[name])
    found = losses.gap_weighted_kl(ours.logits, theirs.logits, small, gap="total_variation")
    expected = float(found.sum() / (small != 255).sum())
    assert float(values(resolved, ours, theirs)["gap"]) == pytest.approx(expected, rel=1e-5)
    # At the start FAKD is the plain divergence, over the labelled pixels.
    pixels = losses.pixelwise_kl(ours.logits, theirs.logits)
    expected = float(pixels.sum(where=small != 255) / (small != 255).sum())
    start = values(resolved, ours, theirs, progress=jnp.array(0.0))["fakd"]
    assert float(start) == pytest.approx(expected, rel=1e-5)


def test_isda_is_the_mean_over_the_labelled_pixels_at_the_labels_size():
    (term,) = resolve(isda=config.term("isda_cross_entropy", strength=2.0))
    ours = output(STUDENT)
    covariance = terms.update_statistics((term,), terms.init_statistics((term,), 3), ours, LABELS)[
        "logits_diagonal"
    ].covariance
    classifier, small = ours.classifiers["logits"], label_maps.nearest(LABELS, (5, 6))
    logits = losses.isda_logits(
        classifier.inputs, classifier.kernel, classifier.bias, small, covariance, strength=1.0
    )
    pixels = losses.upsampled_cross_entropy(logits, LABELS)
    expected = float(pixels.sum() / (LABELS != 255).sum())
    assert float(values((term,), ours, None)["isda"]) == pytest.approx(expected, rel=1e-5)


def test_skd_pools_half_the_map_unless_told_otherwise():
    resolved = resolve(half=config.term("skd_pairwise"), two=config.term("skd_pairwise", window=2))
    ours, theirs = output(STUDENT), output(TEACHER, seed=1)
    found = values(resolved, ours, theirs)
    for name, window in (("half", None), ("two", 2)):
        heads = (ours.features["head"], theirs.features["head"])
        expected = losses.skd_pairwise(*heads, window=window).mean()
        assert float(found[name]) == pytest.approx(float(expected), rel=1e-5)
    assert float(found["half"]) != pytest.approx(float(found["two"]), rel=1e-3)


def test_nfd_logs_the_share_of_dead_channels():
    resolved = resolve(head=config.term("nfd"))
    ours, theirs = output(STUDENT), output(TEACHER, seed=1)
    features = theirs.features | {"head": theirs.features["head"].at[0, ..., :2].set(3.0)}
    found = values(resolved, ours, theirs.replace(features=features))
    assert float(found["head/dead_student_channels"]) == 0.0
    assert float(found["head/dead_teacher_channels"]) == 2 / 8
    loss, parts, _ = Objective(1.0, 0.0, resolved)(ours, theirs, LABELS, {}, {}, HALF)
    assert parts.keys() > {"head", "head/dead_student_channels", "head/dead_teacher_channels"}
    expected = float(parts["cross_entropy"] + 3.0 * parts["head"])
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_augmentation_grows_from_the_plain_loss_with_progress():
    resolved = resolve(
        plain_kl=config.term("gap_weighted_kl"),
        kl=config.term("pixelwise_kl"),
        fakd_cwd=config.term("fakd_cwd"),
        cwd=config.term("cwd"),
        full=config.term("fakd_cwd", covariance="full"),
    )
    ours, theirs = output(STUDENT), output(TEACHER, seed=1)
    start = values(resolved, ours, theirs, progress=jnp.array(0.0))
    half, end = (values(resolved, ours, theirs, progress=jnp.array(p)) for p in (0.5, 1.0))
    assert float(start["fakd_cwd"]) == pytest.approx(float(start["cwd"]), rel=1e-5)
    assert float(start["fakd_cwd"]) < float(half["fakd_cwd"]) < float(end["fakd_cwd"])
    assert float(end["full"]) != float(end["fakd_cwd"])


def test_an_auxiliary_head_is_augmented_through_its_own_classifier():
    kernel, bias = jax.random.normal(jax.random.key(7), (6, 3)), jnp.arange(3.0)

    def auxiliary(specs, seed):
        whole = output(specs, seed=seed)
        features = jax.random.normal(jax.random.key(seed + 9), (2, 5, 6, 6))
        classifier = Classification(features @ kernel + bias, features, kernel, bias)
        return whole.replace(
            aux_logits=classifier.logits,
            classifiers={**whole.classifiers, "aux_logits": classifier},
        )

    specs = {"aux_head": FeatureSpec(6, 8), "aux_logits": FeatureSpec(3, 8)}
    resolved = term_entries.resolve(
        {"t": config.term("fakd_kl", student="aux_logits", teacher="aux_logits")},
        STUDENT | specs,
        TEACHER | specs,
    )
    ours, theirs = auxiliary(STUDENT, 0), auxiliary(TEACHER, 1)
    classifier = ours.classifiers["aux_logits"]
    small = label_maps.nearest(LABELS, (5, 6))
    statistics = losses.ClassStatistics.zeros(3, 6).update(classifier.inputs, small)
    pixels = losses.fakd_kl(
        classifier.inputs,
        kernel,
        bias,
        theirs.aux_logits,
        small,
        statistics.covariance,
        strength=0.5,
    )
    expected = float(pixels.sum() / (small != 255).sum())
    assert float(values(resolved, ours, theirs)["t"]) == pytest.approx(expected, rel=1e-5)


def test_terms_on_the_same_features_share_their_statistics():
    resolved = resolve(
        a=config.term("fakd_kl"), b=config.term("fakd_cwd"), c=config.term("isda_cross_entropy")
    )
    statistics = terms.init_statistics(resolved, 3)
    assert list(statistics) == ["logits_diagonal"]
    ours = output(STUDENT)
    updated = terms.update_statistics(resolved, statistics, ours, LABELS)["logits_diagonal"]
    small = label_maps.nearest(LABELS, (5, 6))
    assert float(updated.count.sum()) == int((small != 255).sum())
