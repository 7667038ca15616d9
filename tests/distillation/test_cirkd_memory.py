"""CIRKD's memory against rings in Python and its formula in float64."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from field import close, given, measure, normal, over_devices, resumed_from

from kdjax import losses
from kdjax.distillation import Distiller, Spec, term
from kdjax.distillation.methods import cirkd
from kdjax.distillation.methods.cirkd import CIRKDMemory, Ring
from kdjax.utils.errors import UserError

IMAGES, HEIGHT, WIDTH, CHANNELS, CLASSES = 8, 3, 4, 5, 3
SPECS = (Spec(4), Spec(CLASSES, scores=True)), (Spec(CHANNELS), Spec(CLASSES, scores=True))
# Rings of 7 and 4 vectors a class, which a batch of 8 images overflows.
SMALL = CIRKDMemory(
    pixels=21, regions=12, pixels_per_class=2, compared_pixels=9, compared_regions=6
)
EXACT = CIRKDMemory(
    pixels=21,
    regions=12,
    pixels_per_class=2,
    compared_pixels=9,
    compared_regions=6,
    storage="float32",
)


def batch(seed, images=IMAGES):
    """Features, scores, and labels among which class 2 is rare."""
    generator = np.random.default_rng(seed)
    labels = generator.choice([0, 1, 2, 255], (images, HEIGHT, WIDTH), p=[0.5, 0.3, 0.02, 0.18])
    scores = np.zeros((images, HEIGHT, WIDTH, CLASSES), np.float32)
    return given(
        (normal(seed + 1, images, HEIGHT, WIDTH, 4), scores),
        (normal(seed + 2, images, HEIGHT, WIDTH, CHANNELS), scores),
        (labels.astype(np.int32),) * 2,
        key=seed,
    )


@functools.cache
def begun(loss):
    params = loss.init_params(jax.random.key(9), *SPECS)
    return params, loss.init_state(*SPECS)


@functools.partial(jax.jit, static_argnums=0)
def updated(loss, state, inputs):
    return loss.update(state, inputs)


def unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


class PythonRing:
    """The rings of all classes, one vector at a time."""

    def __init__(self, ring):
        self.vectors = np.array(ring.vectors, np.float64)
        self.written = [0] * len(self.vectors)

    def write(self, label, vector):
        self.vectors[label, self.written[label] % self.vectors.shape[1]] = vector
        self.written[label] += 1


def remember(rings, inputs, per_class):
    """Puts a batch into the rings, image by image."""
    labels, features = np.asarray(inputs.labels[0]), unit(np.float64(inputs.teacher[0]))
    shape = (len(labels), CLASSES, HEIGHT * WIDTH)
    numbers = np.asarray(jax.random.uniform(jax.random.fold_in(inputs.key, 0), shape))
    for image in range(len(labels)):
        here, vectors = labels[image].ravel(), features[image].reshape(-1, CHANNELS)
        for label in range(CLASSES):
            among = np.flatnonzero(here == label)
            if len(among):
                rings["regions"].write(label, unit(vectors[among].mean(0)))
            order = among[np.argsort(-numbers[image, label][among])]
            for pixel in order[:per_class]:
                rings["pixels"].write(label, vectors[pixel])


def test_the_memory_after_a_stream_is_that_of_rings_in_python():
    _, state = begun(EXACT)
    rings = {name: PythonRing(ring) for name, ring in state.items()}
    for seed in (0, 10, 20):
        inputs = batch(seed)
        state = updated(EXACT, state, inputs)
        remember(rings, inputs, 2)
        for name, ring in rings.items():
            close(state[name].vectors, ring.vectors, 1e-6)
            size = ring.vectors.shape[1]
            for found, written in zip(state[name].written, ring.written, strict=True):
                assert int(found) % size == written % size
                assert min(found, size) == min(written, size)
    # One class went round its ring many times, another once.
    assert 7 < min(rings["pixels"].written) < 14 < max(rings["pixels"].written)


def test_half_precision_keeps_directions_and_an_absent_class_stays():
    _, state = begun(SMALL)
    inputs = batch(0)
    labels = np.where(inputs.labels[0] == 1, 255, inputs.labels[0])
    inputs = given(inputs.student, inputs.teacher, (labels,) * 2)
    after = updated(SMALL, state, inputs)
    for name, ring in after.items():
        assert ring.vectors.dtype == jnp.bfloat16
        lengths = np.linalg.norm(np.float32(ring.vectors), axis=-1)
        close(lengths, np.ones_like(lengths), 4e-3)
        np.testing.assert_array_equal(*(np.float32(x[name].vectors[1]) for x in (after, state)))
        assert int(ring.written[1]) == 0
        assert not np.array_equal(*(np.float32(x[name].vectors[0]) for x in (after, state)))


def test_the_released_sampling_takes_the_first_pixels_of_an_image():
    loss = CIRKDMemory(
        pixels=300, regions=12, pixels_per_class=99, sampling="image", storage="float32"
    )
    _, state = begun(loss)
    inputs = batch(3, images=1)
    inputs.labels[0][0, 0, 0] = 255  # also what has no label
    after = updated(loss, state, inputs)["pixels"]
    vectors = unit(np.asarray(inputs.teacher[0][0]).reshape(-1, CHANNELS))
    for label in range(CLASSES):
        count = int((np.asarray(inputs.labels[0]) == label).sum())
        assert int(after.written[label]) == count
        found = np.asarray(after.vectors[label, :count])
        expected = vectors[:count]
        order = [np.lexsort(x.T) for x in (found, expected)]
        close(found[order[0]], expected[order[1]], 1e-5)


def formula(loss, params, state, inputs):
    """The value in float64, with the places that the loss draws."""
    x = np.float64(inputs.student[0]) @ np.float64(params["first"]["kernel"])
    x = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)
    x = x * np.asarray(params["first"]["scale"]) + np.asarray(params["first"]["shift"])
    mine = unit(np.maximum(x, 0) @ np.float64(params["second"]["kernel"]))
    other, valid = unit(np.float64(inputs.teacher[0])), np.asarray(inputs.valid[0])
    parts = []
    for number, (name, count) in enumerate({"pixels": 9, "regions": 6}.items(), start=1):
        ring = np.asarray(state[name].vectors, np.float64)
        key = jax.random.fold_in(inputs.key, number)
        places = jax.random.choice(key, ring.shape[1], (count // CLASSES + 1,), replace=False)
        memory = ring[:, np.asarray(places)].reshape(-1, CHANNELS)
        logs = []
        for side in (mine, other):
            table = side @ memory.T / loss.temperature
            logs.append(table - np.logaddexp.reduce(table, -1, keepdims=True))
        divergence = np.sum(np.exp(logs[1]) * (logs[1] - logs[0]), -1)
        parts.append(divergence[valid].mean())
    return parts


@pytest.mark.parametrize("loss", [SMALL, EXACT], ids=["bfloat16", "float32"])
def test_the_value_is_the_divergence_of_similarities_over_labeled_pixels(loss):
    params, state = begun(loss)
    inputs = batch(0)
    value, after, logged, (by_params, by_student, by_teacher) = measure(loss, params, state, inputs)
    expected = formula(loss, params, after, inputs)
    close(np.stack([logged["pixels"], logged["regions"]]), expected)
    assert float(value) == pytest.approx(sum(expected), rel=1e-5)
    assert float(logged["pixels_filled"]) == pytest.approx(
        np.minimum(after["pixels"].written, 7).sum() / 21
    )
    assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(by_params))
    assert np.asarray(by_student[0]).any()
    assert not any(np.asarray(leaf).any() for leaf in by_teacher)


def test_nothing_is_left_where_the_student_is_the_teacher():
    """The batch norm is undone, and the convolutions are the identity."""
    _, state = begun(EXACT)
    inputs = batch(0)
    features = np.abs(inputs.teacher[0])
    inputs = given((features, inputs.student[1]), (features, inputs.teacher[1]), inputs.labels)
    undone = {
        "kernel": jnp.eye(CHANNELS),
        "scale": jnp.sqrt(features.var((0, 1, 2)) + 1e-5),
        "shift": features.mean((0, 1, 2)),
    }
    params = {"first": undone, "second": {"kernel": jnp.eye(CHANNELS)}}
    value, _, _, (_, by_student, _) = measure(EXACT, params, state, inputs)
    assert abs(float(value)) < 1e-6
    assert np.isfinite(by_student[0]).all()


def test_ignored_pixels_enter_neither_memory_nor_value():
    params, state = begun(EXACT)
    inputs = batch(0)
    before = measure(EXACT, params, state, inputs)
    teacher = np.where(inputs.valid[0][..., None], inputs.teacher[0], np.nan)
    changed = given(inputs.student, (teacher, inputs.teacher[1]), inputs.labels)
    after = measure(EXACT, params, state, changed)
    assert float(after[0]) == float(before[0])
    jax.tree.map(np.testing.assert_array_equal, after[1], before[1])
    close(after[3][1][0], before[3][1][0], 1e-6)
    # Also where another label is the ignored one, which is a class.
    of_class = (np.where(inputs.valid[0], inputs.labels[0], 2),) * 2
    other = dataclasses.replace(inputs, labels=of_class, ignore_label=2)
    rare = inputs.labels[0] == 2
    same = given(inputs.student, inputs.teacher, (np.where(rare, 255, inputs.labels[0]),) * 2)
    other = dataclasses.replace(other, valid=same.valid)
    found, expected = (measure(EXACT, params, state, x) for x in (other, same))
    assert float(found[0]) == float(expected[0])
    jax.tree.map(np.testing.assert_array_equal, found[1], expected[1])
    nothing = given(inputs.student, inputs.teacher, (np.full_like(inputs.labels[0], 255),) * 2)
    value, same, _, (by_params, _, _) = measure(EXACT, params, state, nothing)
    assert float(value) == 0
    jax.tree.map(np.testing.assert_array_equal, same, state)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(by_params))


@pytest.mark.thorough
@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices (tests/conftest.py)")
def test_memory_and_value_do_not_depend_on_the_devices():
    params, state = begun(EXACT)
    inputs = batch(0)
    expected, found = (measure(EXACT, params, state, x) for x in (inputs, over_devices(inputs)))
    close(found[0], expected[0], 1e-6)
    jax.tree.map(lambda a, b: close(a, b, 1e-6), found[1], expected[1])
    close(found[3][1][0], expected[3][1][0], 1e-5)


def test_strips_of_pixels_are_those_of_a_whole_table(monkeypatch):
    student, teacher, vectors = normal(0, 2, 7, 5), normal(1, 2, 7, 5), normal(2, 4, 5)
    expected = losses.pixelwise_kl(student @ vectors.T, teacher @ vectors.T)
    monkeypatch.setattr(cirkd, "_ENTRIES", 2 * 4 * 3)  # three rows at a time
    close(jax.jit(cirkd._divergence)(student, teacher, vectors), expected)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (term("cirkd_memory", student="head", teacher="head"), "reads two maps a side: features"),
        (term("cirkd_memory", student=("head", "head")), "needs the student's class scores"),
        (term("cirkd_memory", sampling="clas"), 't.sampling is "clas"; it must be class or image'),
        (
            term("cirkd_memory", storage="float16"),
            't.storage is "float16"; it must be bfloat16 or float32',
        ),
        (term("cirkd_memory", regions=2), "must be 3 or more, one for each class"),
        (term("cirkd_memory", temperature=0.0), "t.temperature is 0.0; it must be positive"),
    ],
)
def test_what_cannot_be_is_said(entry, message):
    sides = ({"head": Spec(c, 8), "logits": Spec(CLASSES, 8)} for c in (4, CHANNELS))
    with pytest.raises(UserError, match=message):
        Distiller({"t": entry}, **dict(zip(("student", "teacher"), sides, strict=True)))


def test_a_run_goes_on_in_the_middle_of_a_filled_ring(tmp_path):
    params, state = begun(SMALL)
    for seed in (0, 10):
        state = updated(SMALL, state, batch(seed))
    found = resumed_from(tmp_path, params, state)
    going, resumed = (updated(SMALL, x, batch(20)) for x in (state, found))
    assert isinstance(resumed["pixels"], Ring)
    jax.tree.map(np.testing.assert_array_equal, resumed, going)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices (tests/conftest.py)")
def test_devices_exchange_what_is_drawn_and_no_maps():
    loss = CIRKDMemory(pixels=21, regions=12, pixels_per_class=1)
    inputs = over_devices(batch(0))
    lowered = jax.jit(loss.update).lower(begun(loss)[1], inputs)
    gathered = re.findall(r"= \(?\w+\[([\d,]*)\].* all-gather\(", lowered.compile().as_text())
    assert gathered
    map_size = IMAGES * HEIGHT * WIDTH * CHANNELS
    assert max(math.prod(map(int, shape.split(","))) for shape in gathered) < map_size
