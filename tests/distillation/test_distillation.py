"""Terms: what they read, learn and carry, and what is found before anything runs."""

import dataclasses
import functools
import inspect
import subprocess
import sys
import typing

import jax
import jax.numpy as jnp
import numpy as np
import own_losses
import pytest
import thorough

from kdjax import distillation, losses
from kdjax.distillation import Classification, Distiller, Loss, Spec, layers, term
from kdjax.distillation.methods import LOSSES
from kdjax.training.step import Objective
from kdjax.utils.errors import UserError
from kdjax.utils.schema import SHARE

STEPS = 10
LABELS = np.random.default_rng(3).integers(0, 3, (2, 40, 48), np.int32)
LABELS[0, :9] = 255
SMALL = np.asarray(losses.resize_labels(LABELS, (5, 6)))
VALID = SMALL != 255


def maps(channels, size=(5, 6), seed=0):
    """Two stages, the head, and scores with the classifier that made them."""
    generator = np.random.default_rng(seed)

    def normal(*shape):
        return generator.standard_normal(shape, np.float32)

    head, kernel, bias = normal(2, *size, 4), normal(4, 3), np.full(3, 0.5, np.float32)
    found = {
        "stage3": normal(2, 2 * size[0], 2 * size[1], channels),
        "stage4": normal(2, *size, channels),
        "head": head,
        "logits": Classification(head @ kernel + bias, head, kernel, bias),
    }
    return {name: jax.device_put(values) for name, values in found.items()}


STUDENT, TEACHER = maps(6), maps(9, seed=1)


def scores(side):
    return side["logits"].logits


def compiled(terms, student=STUDENT, teacher=TEACHER, **options):
    """A function to the loss, the state and the metrics of a step, with fresh parameters."""
    distiller = Distiller(terms, student=student, teacher=teacher, **options)
    params, state = distiller.init(jax.random.key(0))
    run = jax.jit(functools.partial(distiller, steps=STEPS))

    def measure(student=student, teacher=teacher, *, step=5, labels=LABELS, key=0):
        loss, (after, metrics) = run(
            params, state, student, teacher, labels, step=step, key=jax.random.key(key)
        )
        return float(loss), after, {name: float(value) for name, value in metrics.items()}

    return measure


def measure(terms, student=STUDENT, teacher=TEACHER, **options):
    return compiled(terms, student, teacher)(**options)


def values(student=STUDENT, teacher=TEACHER, step=5, **terms):
    return measure(terms, student, teacher, step=step)[2]


def mean(loss, *arrays, **options):
    """The mean of a loss by itself, compiled."""
    return float(jax.jit(lambda *given: loss(*given, **options).mean())(*arrays))


def test_a_term_takes_its_defaults_from_the_authors_recipe():
    entry = term("cwd")
    assert (entry["loss"], entry["weight"], entry["temperature"]) == ("cwd", 3.0, 4.0)
    expected = mean(losses.cwd, scores(STUDENT), scores(TEACHER), temperature=4.0)
    loss, _, metrics = measure({"t": entry})
    assert metrics["t"] == pytest.approx(expected, rel=1e-6)
    assert loss == pytest.approx(3 * expected, rel=1e-6)


class TestOwnLosses:
    def test_a_function_is_the_plain_mean_of_what_it_returns(self):
        entry = term("own_losses:cosine", student="head", teacher="head", power=3.0)
        assert entry["power"] == 3.0
        expected = mean(own_losses.cosine, STUDENT["head"], TEACHER["head"], power=3.0)
        assert values(t=entry)["t"] == pytest.approx(expected, rel=1e-6)
        assert term(own_losses.cosine)["loss"] == "own_losses:cosine"

    def test_a_function_may_read_labels_at_the_size_of_its_maps(self):
        found = values(t=term("own_losses:labeled_distance"))["t"]
        expected = mean(own_losses.labeled_distance, scores(STUDENT), scores(TEACHER), SMALL)
        assert found == pytest.approx(expected, rel=1e-6)

    def test_what_is_told_inside_shard_map_is_no_option_of_a_term(self):
        assert {"eps", "group"} <= term("pkd").keys()
        assert "axis_name" not in term("pkd")

    def test_a_class_learns_carries_draws_and_logs(self):
        distiller = Distiller({"mine": own_losses.Masked()}, student=STUDENT, teacher=TEACHER)
        params, state = distiller.init(jax.random.key(0))
        # The adapter brings the student's 6 channels to the teacher's 9 first.
        assert jax.tree.map(jnp.shape, params) == {
            "mine": {"adapter": {"0": {"kernel": (6, 9)}}, "loss": {"kernel": (9, 9)}}
        }

        @jax.jit
        def step(params, state, step, key):
            def loss(params):
                return distiller(
                    params, state, STUDENT, TEACHER, LABELS, step=step, steps=STEPS, key=key
                )

            return jax.value_and_grad(loss, has_aux=True)(params)

        (first, (state, metrics)), gradient = step(params, state, 0, jax.random.key(1))
        assert int(state["mine"]["steps"]) == int(metrics["mine/steps"]) == 1
        assert float(first) == pytest.approx(7 * float(metrics["mine"]), rel=1e-6)
        assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradient))
        (again, _), _ = step(params, state, 0, jax.random.key(1))
        (later, (state, _)), _ = step(params, state, 1, jax.random.key(1))
        assert float(again) == float(first) != float(later)
        assert int(state["mine"]["steps"]) == 2

    def test_an_inherited_field_needs_no_type(self):
        assert own_losses.Attention().student == ("stage3", "stage4")
        assert own_losses.Attention(weight=2.0).adapter == "never"
        with pytest.raises(dataclasses.FrozenInstanceError):
            own_losses.Attention().weight = 3.0

    def test_the_types_of_fields_are_the_values_that_they_accept(self):
        class Typed(distillation.Loss):
            adapter: str = "never"  # pyright: ignore[reportIncompatibleVariableOverride]
            mode: typing.Literal["mean", "sum"] = "mean"
            share: typing.Annotated[float, SHARE] = 0.5

        for options, message in (
            ({"adapter": "auto"}, 't.adapter is "auto"; it must be where_needed or always'),
            ({"mode": "median"}, 't.mode is "median"; it must be mean or sum'),
            ({"share": 2.0}, "t.share is 2.0; it must be from 0 to 1"),
        ):
            with pytest.raises(UserError, match=message):
                distillation.make_loss("terms.t", Typed(**options))
        assert distillation.make_loss("terms.t", Typed()).share == 0.5

    def test_several_maps_a_side_are_paired_and_resized(self):
        found = values(t=own_losses.Attention(), teacher=maps(9, (10, 12), seed=1))
        assert 0 < found["t"] < 1
        inputs = {}

        class Look(distillation.Loss):
            student = ("stage3", "logits")
            teacher = ("stage4", "logits")

            def __call__(self, given, params, state):
                inputs["given"] = given
                return jnp.zeros(()), {"wrong": jnp.sum(given.valid[1] != VALID)}

        assert measure({"t": Look()})[2]["t/wrong"] == 0
        given = inputs["given"]
        assert [x.shape for x in given.student] == [(2, 10, 12, 9), (2, 5, 6, 3)]
        assert [x.shape for x in given.teacher] == [(2, 10, 12, 9), (2, 5, 6, 3)]
        assert [x.shape for x in given.labels] == [(2, 10, 12), (2, 5, 6)]

    def test_terms_draw_other_numbers_than_each_other_and_the_same_again(self):
        two = {"a": own_losses.Masked(), "b": own_losses.Masked()}
        found = measure(two)[2]
        assert found["a"] != found["b"]
        alone = compiled({"b": own_losses.Masked()})
        assert alone()[2]["b"] == found["b"]
        assert alone(key=1)[2]["b"] != found["b"]

    def test_what_is_defined_in_a_function_has_no_name(self):
        class Local(distillation.Loss):
            pass

        with pytest.raises(UserError, match="has no name that a config could hold"):
            term(Local)


class TestAdapter:
    def test_only_where_channels_differ_unless_told_otherwise(self):
        def learned(**changes):
            terms = {
                "same": term("nfd", **changes),
                "other": term("nfd", student="stage4", teacher="stage4", **changes),
            }
            return Distiller(terms, student=STUDENT, teacher=TEACHER).init(jax.random.key(0))[0]

        assert set(learned()) == {"other"}
        assert set(learned(adapter="always")) == {"same", "other"}
        whole = learned(adapter_bias=True, adapter_norm=True)["other"]["adapter"]["0"]
        assert set(whole) == {"kernel", "bias", "scale", "shift"}
        both = {name: term("nfd", student="stage4", teacher="stage4") for name in "ab"}
        params = Distiller(both, student=STUDENT, teacher=TEACHER).init(jax.random.key(0))[0]
        first, second = (params[name]["adapter"]["0"]["kernel"] for name in "ab")
        assert not np.allclose(first, second)
        with pytest.raises(
            UserError, match=r"terms\.t: student and teacher must have the same num"
        ):
            values(t=term("nfd", student="stage4", teacher="stage4", adapter="never"))

    def test_it_computes_a_normalized_convolution(self):
        params = layers.init_adapter(jax.random.key(0), 6, 9, bias=True, norm=True)
        params["bias"], params["shift"] = jnp.arange(9.0), jnp.ones(9)
        found = np.asarray(layers.adapt(params, STUDENT["stage4"]))
        np.testing.assert_allclose(found.mean((0, 1, 2)), np.ones(9), atol=1e-5)
        np.testing.assert_allclose(found.std((0, 1, 2)), np.ones(9), atol=1e-3)
        plain = layers.adapt({"kernel": params["kernel"]}, STUDENT["stage4"])
        np.testing.assert_allclose(plain, STUDENT["stage4"] @ params["kernel"], rtol=1e-6)

    def test_its_learning_rate_is_the_terms(self):
        terms = {
            "a": term("nfd", student="stage4", teacher="stage4", learning_rate=10.0),
            "b": term("nfd", student="stage4", teacher="stage4"),
        }
        distiller = Distiller(terms, student=STUDENT, teacher=TEACHER)
        rates = distiller.learning_rates(distiller.init(jax.random.key(0))[0])
        assert rates["a"] == {"adapter": {"0": {"kernel": 10.0}}}
        assert rates["b"] == {"adapter": {"0": {"kernel": 1.0}}}


@pytest.mark.parametrize(("side", "size"), [("teacher", (5, 6)), ("student", (10, 12))])
def test_sizes_that_differ_are_resized_by_the_stated_side(side, size):
    theirs = maps(9, (10, 12), seed=1)
    found = values(t=term("pixelwise_kl", resize=side), teacher=theirs)["t"]

    def resized(*scores):
        shape = (2, *size, 3)
        resized = [jax.image.resize(x, shape, "bilinear", antialias=False) for x in scores]
        return losses.pixelwise_kl(*resized)

    assert found == pytest.approx(mean(resized, scores(STUDENT), scores(theirs)), rel=1e-5)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"loss": "cwdd"}, r't\.loss names the unknown loss "cwdd": did you mean "cwd"'),
        ({"loss": "nowhere:Loss"}, 'names the loss "nowhere:Loss": there is no module "nowhere"'),
        ({"loss": "own_losses:cosin"}, 'own_losses has no "cosin"; did you mean "cosine"'),
        (
            {"loss": "own_losses:no_student"},
            r"no_student\(prediction, target\) must take",
        ),
        ({"loss": "own_losses:NotReduced"}, r"must be a single number, got \[2, 5, 6, 3\]"),
        ({"loss": "own_losses:Complex"}, r'terms\.t: "t" is complex; it must be a real number'),
        ({"loss": "own_losses:Complex", "logged": True}, '"t/spectrum" is complex; it must be a'),
        (
            {"loss": "own_losses:NeedsLargeMaps"},
            r"t: needs maps of 32 pixels or more, got \(5",
        ),
        ({"loss": "own_losses:Fails"}, r"terms\.t: (TypeError: )?"),
        ({}, "terms.t names no loss"),
        ({"loss": "cwd", "temprature": 1.0}, 't.temprature is no key of cwd: .*"temperature"'),
        ({"loss": "cwd", "weight": "3"}, "terms.t.weight is '3'; it must be like 3.0"),
        ({"loss": "cwd", "weight": -1.0}, "terms.t.weight is -1.0; it must be 0 or more"),
        ({"loss": "cwd", "final_weight": float("nan")}, "terms.t.final_weight is nan; it must be"),
        (
            {"loss": "cwd", "schedule": "linar"},
            't.schedule is "linar"; it must be constant or linear or c',
        ),
        ({"loss": "cwd", "resize": "both"}, 't.resize is "both"'),
        ({"loss": "cwd", "adapter": "auto"}, 't.adapter is "auto"'),
        ({"loss": "cwd", "student": 3}, r"t\.student is 3; it must be the name of a map"),
        (
            {"loss": "cwd", "student": "stage9"},
            't.student: the student has no map "stage9"; it has stage3, stage4, head, logits',
        ),
        ({"loss": "cwd", "teacher": "aux_logits"}, 'the teacher has no map "aux_logits"'),
        (
            {"loss": "own_losses:Attention", "student": ("stage3",)},
            "names 1 maps of the student and 2 of the teacher",
        ),
        ({"loss": "nfd", "axes": "pixels"}, 't.axes is "pixels"; it must be space or batch_space'),
        (
            {"loss": "fakd_kl", "bound": "plugin"},
            't.bound is "plugin"; it must be soft or pairwise',
        ),
        ({"loss": "fakd_kl", "strength": -1.0}, "t.strength is -1.0; it must be 0 or more"),
        (
            {"loss": "fakd_kl", "covariance": "ful"},
            't.covariance is "ful"; it must be diagonal or full',
        ),
        ({"loss": "cwd", "temperature": 0.0}, "t: temperature must be a positive number"),
        *(
            ({"loss": name, "student": "head"}, "t: needs class scores on both sides")
            for name in ("fakd_kl", "dist_inter", "dist_intra", "dkd", "wsld", "bpkd", "jml")
        ),
        (
            {"loss": "dsd_pairs", "student": "head", "teacher": "head"},
            "t: dsd_pairs compares pairs",
        ),
        (
            {"loss": "isda_cross_entropy", "teacher": "logits"},
            "t.teacher is 'logits'; this",
        ),
    ],
)
def test_a_wrong_entry_names_itself_and_what_would_be_right(entry, message):
    with pytest.raises(UserError, match=message):
        values(t=entry)


def test_standardized_scores_of_two_classes_are_refused():
    two = {"logits": Spec(2, 8)}
    with pytest.raises(UserError, match=r"terms\.t: needs three classes, got 2"):
        Distiller({"t": term("standardized_kl")}, student=two, teacher=two)


def test_reserved_names_other_classes_and_tokens_are_refused():
    with pytest.raises(UserError, match=r"terms\.loss is the name of a metric that is always"):
        values(loss=term("cwd"))
    with pytest.raises(UserError, match="scores 3 classes and the teacher 7"):
        Distiller({"t": term("cwd")}, student=STUDENT, teacher={"logits": Spec(7, 8)})
    with pytest.raises(ValueError, match=r'the map "tokens" must be \[B, h, w, C\].*\[2, 30, 9\]'):
        Distiller({}, student={"tokens": jnp.zeros((2, 30, 9))})
    with pytest.raises(UserError, match="must say how these were made"):
        Distiller({"t": term("fakd_kl")}, student={"logits": scores(STUDENT)}, teacher=TEACHER)


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
    entry = term("cwd", student="head", teacher="stage4")
    distiller = Distiller(
        {"mine": entry}, student=STUDENT, teacher=TEACHER, image_size=(40, 48), where="config.terms"
    )
    params, state = distiller.init(jax.random.key(0))
    given, name = {"student": STUDENT, "teacher": TEACHER}, entry[side]
    given[side] = {**given[side], name: change(given[side][name])}
    message = (
        rf'^config\.terms\.mine\.{side}: "{name}" of the {side} is {found}; .* must be \[2, 5, 6'
    )
    with pytest.raises(UserError, match=message):
        distiller(
            params, state, *given.values(), LABELS, step=0, steps=STEPS, key=jax.random.key(0)
        )
    # In a small map, leading channels look like rows of another stride.
    if found in (r"\[2, 9, 5, 6\]", r"\[2, 10, 6, 4\]"):
        with pytest.raises(ValueError, match=rf'the map "{name}" is {found} on images of 40 x 48'):
            Distiller({}, student=given[side], image_size=(40, 48))


def test_the_objective_is_the_weighted_sum_of_its_named_parts():
    entry = term("pixelwise_kl", weight=2.0, schedule="linear", final_weight=0.0)
    distiller = Distiller({"kl": entry}, student=STUDENT, teacher=TEACHER)
    ours = {**STUDENT, "aux_logits": -scores(STUDENT)}

    def measured(objective):
        run = jax.jit(functools.partial(objective, steps=4))
        loss, (_, parts) = run(ours, TEACHER, LABELS, {}, {}, step=1, key=jax.random.key(0))
        return loss, parts

    loss, parts = measured(Objective(1.0, 0.4, distiller))
    assert parts.keys() == {"loss", "cross_entropy", "auxiliary_cross_entropy", "kl"}
    expected = parts["cross_entropy"] + 0.4 * parts["auxiliary_cross_entropy"] + 1.5 * parts["kl"]
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    # mmsegmentation's cross-entropies: over all pixels, of which some are ignored.
    _, fewer = measured(Objective(1.0, 0.4, distiller, mean_over="all"))
    share = float((LABELS != 255).mean())
    assert share < 1
    for name in ("cross_entropy", "auxiliary_cross_entropy"):
        assert float(fewer[name]) == pytest.approx(share * float(parts[name]), rel=1e-5)

    def resized(scores):
        resized = jax.image.resize(scores, (2, 40, 48, 3), "bilinear", antialias=False)
        return losses.cross_entropy(resized, LABELS)

    expected = mean(resized, scores(STUDENT)) / share
    assert float(parts["cross_entropy"]) == pytest.approx(expected, rel=1e-5)


def test_schedules_go_from_weight_to_final_weight():
    progress = jnp.array([0.0, 0.5, 1.0])
    expected = {"constant": [2, 2, 2], "linear": [2, 1.5, 1], "cosine": [2, 1.5, 1]}
    assert typing.get_args(inspect.get_annotations(Loss)["schedule"]) == tuple(expected)
    for name, weights in expected.items():
        loss = own_losses.Masked(weight=2.0, final_weight=1.0, schedule=name)
        np.testing.assert_allclose(loss.weight_at(progress), weights, rtol=1e-6)


PAPERS = ("cwd", "nfd", "pfs", "gap_weighted_kl", "fakd_kl")


@pytest.mark.parametrize(
    "name", thorough.after(len(PAPERS), [*PAPERS, *sorted(LOSSES.keys() - {*PAPERS})])
)
def test_every_loss_is_a_term_with_one_entry(name):
    # The networks have no auxiliary scores, and small maps of few channels.
    both = ("stage4", "head")
    changes = {
        "dsd_pairs": {"student": both, "teacher": both},
        "af_dcd": {"pool": 1, "groups": 3},
        "cirkd_memory": {"pixels": 30, "regions": 30},
        "holistic": {"channels": ()},
        "ofd": {"student": both, "teacher": both, "divisors": (1.0, 1.0)},
        "standardized_l2": {"fitted_over": 5},
    }
    entry = term(name, **changes.get(name, {}))
    distiller = Distiller({"t": entry}, student=STUDENT, teacher=TEACHER)
    params, state = distiller.init(jax.random.key(0))
    teacher = TEACHER if distiller.needs_teacher else None

    def value(student, teacher):
        found, (_, metrics) = distiller(
            params, state, student, teacher, LABELS, step=5, steps=STEPS, key=jax.random.key(0)
        )
        return found, metrics["t"]

    @jax.jit
    def gradients(student, teacher):
        """Returns the value, and its gradients with respect to the student and the teacher."""
        return jax.value_and_grad(value, argnums=(0, 1), has_aux=True)(student, teacher)

    (_, found), (gradient, unwanted) = gradients(STUDENT, teacher)
    # A discriminator's opinion may be of either sign.
    assert float(found) > 0 or name == "holistic"
    assert found.dtype == jnp.float32
    gradient, unwanted = jax.device_get((gradient, unwanted))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert any(leaf.any() for leaf in jax.tree.leaves(gradient))
    assert not any(leaf.any() for leaf in jax.tree.leaves(unwanted))


def test_ignored_pixels_do_not_count_where_a_loss_reads_labels():
    terms = {"gap": term("gap_weighted_kl", gap="total_variation"), "fakd": term("fakd_kl")}
    assert not bool(VALID.all())
    moved = np.where(VALID[..., None], 0.0, 7.0) * np.arange(3.0, dtype=np.float32)
    changed = {
        **TEACHER,
        "logits": dataclasses.replace(TEACHER["logits"], logits=scores(TEACHER) + moved),
    }
    run = compiled(terms)
    found = run()[2]
    assert run(teacher=changed)[2] == found
    maps, share = (scores(STUDENT), scores(TEACHER)), VALID.mean()
    expected = mean(losses.gap_weighted_kl, *maps, SMALL, gap="total_variation") / share
    assert found["gap"] == pytest.approx(expected, rel=1e-5)
    # At the start FAKD is the plain divergence, over the labeled pixels.
    expected = mean(lambda *maps: losses.pixelwise_kl(*maps) * VALID, *maps) / share
    assert run(step=0)[2]["fakd"] == pytest.approx(expected, rel=1e-5)


def test_another_label_may_be_the_ignored_one():
    terms = {"gap": term("gap_weighted_kl"), "fakd": term("fakd_kl")}
    expected, state, _ = compiled(terms)()
    labels = np.where(LABELS == 255, -1, LABELS)
    moved, other, _ = compiled(terms, ignore_label=-1)(labels=labels)
    assert moved == expected
    jax.tree.map(np.testing.assert_array_equal, other, state)


def test_isda_is_the_mean_over_the_labeled_pixels_at_the_labels_size():
    entry = term("isda_cross_entropy", strength=2.0)
    _, state, metrics = measure({"isda": entry})
    classifier = STUDENT["logits"]

    def pixels(classifier, covariance):
        scorer = (classifier.inputs, classifier.kernel, classifier.bias)
        logits = losses.isda_logits(*scorer, SMALL, covariance, strength=1.0)
        return losses.upsampled_cross_entropy(logits, LABELS)

    expected = mean(pixels, classifier, state["isda"].covariance) / (LABELS != 255).mean()
    assert metrics["isda"] == pytest.approx(expected, rel=1e-5)
    assert float(state["isda"].count.sum()) == int(VALID.sum())


def test_skd_pools_half_the_map_unless_told_otherwise():
    found = values(half=term("skd_pairwise"), two=term("skd_pairwise", window=2))
    for name, window in (("half", None), ("two", 2)):
        expected = mean(losses.skd_pairwise, STUDENT["head"], TEACHER["head"], window=window)
        assert found[name] == pytest.approx(expected, rel=1e-5)
    assert found["half"] != pytest.approx(found["two"], rel=1e-3)


def test_l2_learns_an_adapter_also_where_channels_agree():
    distiller = Distiller({"t": term("l2")}, student=STUDENT, teacher=TEACHER)
    params, _ = distiller.init(jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == {"t": {"adapter": {"0": {"kernel": (4, 4)}}}}
    assert distiller.terms["t"].weight == 10.0


def test_nfd_logs_the_share_of_dead_channels():
    head = TEACHER["head"].at[0, ..., :2].set(3.0)
    found = values(head=term("nfd"), teacher={**TEACHER, "head": head})
    assert found["head/dead_student_channels"] == 0.0
    assert found["head/dead_teacher_channels"] == 2 / 8


def test_augmentation_grows_from_the_plain_loss_with_progress():
    terms = {
        "fakd_cwd": term("fakd_cwd"),
        "cwd": term("cwd"),
        "full": term("fakd_cwd", covariance="full"),
    }
    run = compiled(terms)
    start, half, end = (run(step=step)[2] for step in (0, 5, 10))
    assert start["fakd_cwd"] == pytest.approx(start["cwd"], rel=1e-5)
    assert start["fakd_cwd"] < half["fakd_cwd"] < end["fakd_cwd"]
    assert end["full"] != end["fakd_cwd"]


def test_an_auxiliary_head_is_augmented_through_its_own_classifier():
    kernel = np.random.default_rng(7).standard_normal((6, 3), np.float32)
    bias = np.arange(3, dtype=np.float32)

    def auxiliary(side, seed):
        features = np.random.default_rng(seed + 9).standard_normal((2, 5, 6, 6), np.float32)
        classifier = Classification(features @ kernel + bias, features, kernel, bias)
        return {**side, "aux_logits": classifier}

    ours, theirs = auxiliary(STUDENT, 0), auxiliary(TEACHER, 1)
    entry = term("fakd_kl", student="aux_logits", teacher="aux_logits")
    found = values(t=entry, student=ours, teacher=theirs)["t"]

    def pixels(features, target):
        statistics = losses.ClassStatistics.zeros(3, 6).update(features, SMALL)
        covariance = statistics.covariance
        return losses.fakd_kl(features, kernel, bias, target, SMALL, covariance, strength=0.5)

    expected = mean(pixels, ours["aux_logits"].inputs, theirs["aux_logits"].logits) / VALID.mean()
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_terms_that_depend_on_the_number_of_steps_are_known():
    image = jnp.zeros((2, 64, 64, 3))
    terms = {
        "constant": term("cwd"),
        "growing": term("cwd", schedule="linear", final_weight=1.0),
        "drawn": term("mgd", student="head", teacher="head"),
        "adversarial": term("holistic"),
    }
    maps = {"logits": image, "head": image}
    distiller = Distiller(terms, student=maps, teacher=maps, image_size=(64, 64))
    assert distiller.depend_on_steps() == ["growing", "adversarial"]


def test_terms_are_described_in_a_line_each():
    terms = {
        "logits": term("cwd"),
        "mine": own_losses.Masked(),
        "at": own_losses.Attention(),
        "isda": term("isda_cross_entropy"),
    }
    assert Distiller(terms, student=STUDENT, teacher=TEACHER).describe() == [
        "logits: CWD(logits, logits; temperature 4.0)",
        "mine: Masked(stage4, stage4; masked 0.5), adapter 1x1 6 -> 9",
        "at: Attention(stage3+stage4, stage3+stage4)",
        "isda: ISDACrossEntropy(logits; strength 7.5, covariance diagonal)",
    ]


def test_maps_may_be_described_in_place_of_being_there():
    abstract = jax.eval_shape(lambda: STUDENT)
    distiller = Distiller(
        {"t": own_losses.Masked()},
        student=abstract,
        teacher={"stage4": Spec(9, 8)},
        image_size=(40, 48),
    )
    params, _ = distiller.init(jax.random.key(0))
    assert params["t"]["adapter"]["0"]["kernel"].shape == (6, 9)
    assert (distiller.reads("student"), distiller.reads("teacher")) == ({"stage4"}, {"stage4"})


def test_it_needs_jax_and_nothing_else():
    code = (
        "import sys; from kdjax import distillation;"
        "found = {name.partition('.')[0] for name in sys.modules};"
        "print(found & {'flax', 'optax', 'orbax', 'ml_collections', 'absl', 'tensorflow'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
