"""Examples on the device: the same batches as those that tf.data streams, without TensorFlow."""

import functools

import jax
import numpy as np
import pytest
import thorough

from kdjax.data._tensorflow import tf
from kdjax.data.loading import pipeline
from kdjax.data.loading.augment import augment
from kdjax.data.loading.device_augment import augment_batch
from kdjax.data.loading.sampling import (
    AugmentOptions,
    ClassSampling,
    Draws,
    draw,
    examples_at,
    index_batches,
)
from kdjax.data.loading.sources import InMemoryExamples
from kdjax.experiment.input_pipeline import prefetch
from kdjax.training.sharding import Placement
from kdjax.utils.errors import UserError

FULL = AugmentOptions((16, 24), clean_view=True)
SIZES = [(20, 30), (41, 17), (9, 50), (64, 64), (20, 30), (33, 33), (12, 80), (50, 26)]
GEOMETRY = ("label", "clean")


@pytest.fixture(scope="module")
def held():
    """Examples of many sizes, with smooth and rough places and few enough classes to be redrawn."""
    rng = np.random.default_rng(0)
    examples = []
    for height, width in SIZES:
        image = rng.integers(0, 256, (height, width, 3))
        image[:, : width // 2] = image[:1, :1]
        label = np.where(np.arange(width) < width // 2, 1, rng.integers(0, 5, (height, width)))
        label[:, -2:] = 255
        examples.append({"image": image.astype(np.uint8), "label": label.astype(np.uint8)})
    return InMemoryExamples(examples)


@functools.cache
def on_device(options):
    return jax.jit(functools.partial(augment_batch, options=options))


@functools.cache
def in_stream(held, options):
    """Returns the tf.data augmentation of one example, traced once for all sizes."""
    draws = [tf.TensorSpec(value.shape[1:], value.dtype) for value in draw(options, 0, [0])]

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([], tf.int64), Draws(*draws)])
    def crop(index, draws):
        label, read_window = held.decode(index)
        return augment(read_window, label, draws, options)

    return crop


def both(held, options, seed, count=8):
    """Returns the batch of `count` examples by tf.data, and by the device."""
    arrays = held.padded()
    by_class = None
    if options.class_uniform:
        members = (np.arange(len(held)),) * 2
        by_class = ClassSampling(options.class_uniform, ((1, members[0]), (3, members[1])))
    indices, draws = examples_at(
        np.arange(count), seed, held.lengths, held.weights, options, by_class
    )
    indices = indices.astype(np.int32)
    found = on_device(options)(arrays, indices, draws)
    crop = in_stream(held, options)
    crops = [
        crop(int(index), Draws(*(value[row] for value in draws)))
        for row, index in enumerate(indices)
    ]
    streamed = {key: np.stack([crop[key].numpy() for crop in crops]) for key in crops[0]}
    return streamed, jax.device_get(found)


@pytest.mark.parametrize(
    "changes",
    thorough.after(
        1,
        [
            {"photometric": False},
            {"photometric": False, "base_size": (90, 30)},
            {"photometric": False, "base_size": (45, 45)},
            {"photometric": False, "flip": False, "max_class_share": 1},
            {"photometric": False, "scale_range": (1, 1), "crop_size": (70, 100)},
            {"photometric": False, "max_class_share": 0.3},
            {"photometric": False, "class_uniform": 0.8},
            {"photometric": False, "class_uniform": 1.0, "base_size": (90, 30)},
        ],
    ),
)
def test_geometry_is_that_of_the_stream_bit_for_bit(held, changes):
    options = AugmentOptions(**{"crop_size": (16, 24), **changes})
    for seed in range(6):
        streamed, found = both(held, options, seed)
        for key in ("image", "label"):
            np.testing.assert_array_equal(found[key], streamed[key])


@pytest.mark.parametrize("changes", thorough.after(1, [{}, {"base_size": (50_000, 9)}]))
def test_very_wide_examples_are_those_of_the_stream_bit_for_bit(changes):
    rng = np.random.default_rng(0)
    wide = InMemoryExamples(
        {
            "image": rng.integers(0, 256, (height, width, 3)).astype(np.uint8),
            "label": rng.integers(0, 256, (height, width)).astype(np.uint8),
        }
        for height, width in [(1, 40_000), (2, 24_000)]
    )
    options = AugmentOptions((2, 24), scale_range=(1.8, 2.0), photometric=False, **changes)
    for seed in range(3):
        streamed, found = both(wide, options, seed)
        for key in ("image", "label"):
            np.testing.assert_array_equal(found[key], streamed[key])


@pytest.mark.parametrize("changes", [{"scale_range": (1, 7)}, {"base_size": (10**6, 9)}])
def test_sides_that_the_device_cannot_place_are_named(changes):
    options = AugmentOptions((2, 24), **changes)
    held = {"image": np.zeros((1, 1, 40_000, 3), np.uint8)}
    with pytest.raises(UserError, match=r"1 x 40,000 pixels .* config\.data\.cache to \"host\""):
        augment_batch(held, np.zeros(1, np.int32), draw(options, 0, [0]), options)


@pytest.mark.thorough
def test_colors_are_those_of_the_stream_within_a_level(held):
    differing = []
    for seed in range(20):
        streamed, found = both(held, FULL, seed)
        for key in GEOMETRY:
            np.testing.assert_array_equal(found[key], streamed[key])
        apart = np.abs(found["image"].astype(int) - streamed["image"])
        assert apart.max() <= 1
        assert (streamed["image"] != streamed["clean"]).any()
        differing.append((apart > 0).mean())
    assert np.mean(differing) < 1e-3


def test_batches_from_the_device_are_those_of_the_pipeline(held):
    settings = {"batch_size": 8, "seed": 3, "steps": range(7, 30), "options": FULL}
    streamed = list(pipeline.train_batches(held, **settings))
    placement = Placement()
    arrays = placement.replicate(held.padded())
    batches = index_batches(held.lengths, held.weights, **settings)
    step = on_device(FULL)
    count = 0
    for expected, batch in zip(streamed, prefetch(batches, placement.put_batch), strict=True):
        found = step(arrays, batch["indices"], batch["draws"])
        expected_sharding = placement.batch_shardings(found)["image"]
        assert found["image"].sharding.is_equivalent_to(expected_sharding, 4)
        for key in GEOMETRY:
            np.testing.assert_array_equal(found[key], expected[key])
        assert np.abs(np.asarray(found["image"], int) - expected["image"]).max() <= 1
        count += 1
    assert count == 23


def test_no_image_travels_between_devices(held):
    placement = Placement()
    arrays = placement.replicate(held.padded())
    (batch,) = index_batches(
        held.lengths, held.weights, batch_size=8, seed=0, steps=range(1), options=FULL
    )
    batch = placement.put_batch(batch)
    compiled = on_device(FULL).lower(arrays, batch["indices"], batch["draws"]).compile()
    text = compiled.as_text()
    # Devices only agree on whether any example needs another crop.
    assert "all-gather" not in text
    assert "all-to-all" not in text
    assert "collective-permute" not in text


def test_processes_share_what_travels(held):
    settings = {"batch_size": 8, "seed": 3, "steps": range(3), "options": FULL}
    whole = list(index_batches(held.lengths, (1,), **settings))
    shares = [
        list(index_batches(held.lengths, (1,), process_index=i, process_count=2, **settings))
        for i in range(2)
    ]
    for batch, *parts in zip(whole, *shares, strict=True):
        joined = jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
        jax.tree.map(np.testing.assert_array_equal, joined, batch)


def test_arrays_of_another_form_are_named():
    image, label = np.zeros((4, 5, 3), np.uint8), np.zeros((4, 6), np.uint8)
    with pytest.raises(ValueError, match=r"example 0: image uint8 \(4, 5, 3\) and label uint8"):
        InMemoryExamples([{"image": image, "label": label}])


def test_batches_are_placed_ahead_of_the_step():
    placed = []
    batches = prefetch(range(5), lambda batch: placed.append(batch) or batch, ahead=2)
    assert next(batches) == 0
    assert placed == [0, 1, 2]
    assert list(batches) == [1, 2, 3, 4]
