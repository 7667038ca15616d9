"""Batches: they depend on seed and step alone, and evaluation sees each image once."""

import numpy as np
import pytest
import thorough
from made_up_images import noise
from PIL import Image

from kdjax.data import sets
from kdjax.data._tensorflow import tf
from kdjax.data.loading import pipeline
from kdjax.data.loading.records import Records
from kdjax.data.loading.sampling import AugmentOptions, example_indices
from kdjax.data.preparing.builder import find_builder
from kdjax.utils.bands import RGB
from kdjax.utils.errors import UserError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Nine images of two sizes to train on, seven of three sizes to validate on."""
    root = tmp_path_factory.mktemp("set")
    sizes = [(20, 30)] * 5 + [(18, 26)] * 4
    val_sizes = [(20, 30), (20, 30), (12, 10), (20, 30), (30, 20), (20, 30), (20, 30)]
    for split, shapes in (("train", sizes), ("val", val_sizes)):
        for number, shape in enumerate(shapes):
            for kind, pixels in zip(("images", "labels"), noise(*shape, number), strict=True):
                path = root / kind / split / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return sets.prepare("folder", root / "data", source=root)


FULL = AugmentOptions((16, 24))


SETTINGS = {"batch_size": 4, "seed": 5, "options": FULL}
STEPS = 60


class CountingRecords(Records):
    """Records that count how many of them are read."""

    def __init__(self, records):
        super().__init__(records.bands)
        self._records, self.fetched = records, 0

    def __len__(self):
        return len(self._records)

    def error(self, what):
        return self._records.error(what)

    def read_serialized(self, indices):
        self.fetched += len(indices)
        return self._records.read_serialized(indices)


def batches(dataset, count, **changes):
    settings = {**SETTINGS, **changes}
    return list(pipeline.train_batches(dataset.records("train"), steps=range(count), **settings))


def assert_same(first, second):
    assert len(first) == len(second)
    for left, right in zip(first, second, strict=True):
        assert left.keys() == right.keys()
        for key in left:
            np.testing.assert_array_equal(left[key], right[key])


def test_batches_have_the_promised_form(dataset):
    (batch,) = batches(dataset, 1)
    assert batch["image"].shape == (4, 16, 24, 3)
    assert batch["label"].shape == (4, 16, 24)
    assert batch["image"].dtype == batch["label"].dtype == np.uint8


@pytest.fixture(scope="module")
def first_batches(dataset):
    return batches(dataset, STEPS)


@pytest.mark.parametrize("num_threads", [1, 8])
def test_threads_change_nothing(dataset, first_batches, num_threads):
    assert_same(batches(dataset, STEPS, num_threads=num_threads), first_batches)


@pytest.mark.parametrize("count", thorough.after(1, [2, 4]))
def test_the_rows_of_all_processes_are_the_batch_of_one(dataset, first_batches, count):
    read = []
    for process in range(count):
        records = CountingRecords(dataset.records("train"))
        shares = pipeline.train_batches(
            records, **SETTINGS, steps=range(STEPS), process_index=process, process_count=count
        )
        read.append(list(shares))
        assert records.fetched == STEPS * 4 // count
    whole = [
        {key: np.concatenate([share[key] for share in shares]) for key in shares[0]}
        for shares in zip(*read, strict=True)
    ]
    assert_same(whole, first_batches)


def test_a_run_continues_with_the_batch_it_would_have_seen(dataset, first_batches):
    records = CountingRecords(dataset.records("train"))
    resumed = list(pipeline.train_batches(records, **SETTINGS, steps=range(43, STEPS)))
    assert_same(resumed, first_batches[43:])
    assert records.fetched == (STEPS - 43) * 4


def test_batches_differ_by_seed_and_step(dataset, first_batches):
    other = batches(dataset, 1, seed=6)[0]
    assert (other["image"] != first_batches[0]["image"]).any()
    assert (first_batches[0]["image"] != first_batches[9]["image"]).any()


def test_a_batch_that_cannot_be_shared(dataset):
    with pytest.raises(UserError, match="a batch of 4 cannot be shared by 3 processes"):
        batches(dataset, 1, process_count=3)


def test_nothing_depends_on_a_global_generator(dataset):
    first = batches(dataset, 3)
    np.random.seed(1)
    tf.random.set_seed(1)
    assert_same(batches(dataset, 3), first)


def test_each_epoch_visits_every_example_once_in_its_own_order():
    orders = example_indices(np.arange(50 * 3), 1, [50]).reshape(3, 50)
    for order in orders:
        assert sorted(order) == list(range(50))
    assert len({tuple(order) for order in orders}) == 3
    np.testing.assert_array_equal(
        example_indices(np.arange(45, 60), 1, [50]), orders.ravel()[45:60]
    )
    assert tuple(example_indices(np.arange(50), 2, [50])) != tuple(orders[0])


def test_batches_larger_than_the_split_span_epochs(dataset):
    (batch,) = batches(dataset, 1, batch_size=20)
    assert len(batch["image"]) == 20


def test_an_example_is_augmented_anew_each_time_it_comes(dataset):
    crops = np.concatenate([batch["image"] for batch in batches(dataset, 18)])
    assert len(np.unique(crops.reshape(len(crops), -1), axis=0)) == len(crops)


def test_training_without_augmentation_shows_the_records(dataset):
    chosen = AugmentOptions(
        (30, 40), scale_range=(1, 1), max_class_share=1, flip=False, photometric=False
    )
    (batch,) = batches(dataset, 1, batch_size=9, options=chosen)
    order = example_indices(np.arange(9), 5, [9])
    for row, example in enumerate(pipeline.load_examples(dataset, "train", order.tolist())):
        height, width = example["label"].shape
        np.testing.assert_array_equal(batch["image"][row, :height, :width], example["image"])
        np.testing.assert_array_equal(batch["label"][row, :height, :width], example["label"])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
@pytest.mark.parametrize("pad_to", [1, 16])
def test_evaluation_sees_each_image_once_whole(dataset, batch_size, pad_to):
    found = list(pipeline.eval_batches(dataset, "val", batch_size=batch_size, pad_to=pad_to))
    assert {len(value) for batch in found for value in batch.values()} == {batch_size}
    assert_holds_val(dataset, found, pad_to)
    shapes = {batch["label"].shape for batch in found}
    assert len(shapes) == (3 if pad_to == 1 else 2)  # 32 x 32 twice over, and 16 x 16


def assert_holds_val(dataset, found, pad_to):
    """Checks that each of the seven validation images occurs once, and the rest is blank."""
    examples = pipeline.load_examples(dataset, "val", range(7))
    seen = []
    for batch in found:
        assert all(size % pad_to == 0 for size in batch["label"].shape[1:])
        for row, index in enumerate(batch["index"]):
            image, label = batch["image"][row].copy(), batch["label"][row].copy()
            if batch["valid"][row]:
                height, width = batch["size"][row]
                assert (height, width) == examples[index]["label"].shape
                np.testing.assert_array_equal(image[:height, :width], examples[index]["image"])
                np.testing.assert_array_equal(label[:height, :width], examples[index]["label"])
                image[:height, :width], label[:height, :width] = RGB.padding, 255
                seen.append(index)
            else:
                assert index == -1
            assert (image == RGB.padding).all()
            assert (label == 255).all()
    assert sorted(seen) == list(range(7))


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_evaluation(dataset, count):
    shares = [
        list(
            pipeline.eval_batches(
                dataset, "val", batch_size=4, process_index=process, process_count=count
            )
        )
        for process in range(count)
    ]
    # The same shapes in the same order, though some have nothing but blank images left.
    assert len({tuple(batch["label"].shape for batch in share) for share in shares}) == 1
    assert_holds_val(dataset, [batch for share in shares for batch in share], 1)


def test_examples_have_names(dataset):
    assert dataset.records("val").names() == [str(i) for i in range(7)]


def test_an_unknown_split_is_named_at_once(dataset):
    with pytest.raises(UserError, match="no split 'test'; it has train, val"):
        dataset.records("test")
    with pytest.raises(UserError, match="no split 'test'"):
        pipeline.eval_batches(dataset, "test", batch_size=1)


@pytest.fixture(scope="module")
def draw_scene():
    draw = find_builder("shapes")._generate_examples.__globals__["scene"]
    return lambda seed: draw(np.random.default_rng(seed))


def test_scenes_come_from_their_seed_and_hold_every_class(draw_scene):
    image, label = draw_scene(4)
    assert image.shape == (96, 96, 3)
    assert label.shape == (96, 96)
    assert image.dtype == label.dtype == np.uint8
    np.testing.assert_array_equal(draw_scene(4)[0], image)
    labels = np.stack([draw_scene(seed)[1] for seed in range(40)])
    shares = np.bincount(labels.ravel(), minlength=8) / labels.size
    assert len(shares) == 8
    assert 0.6 < shares[0] < 0.85
    assert shares[1:].min() > 0.01
