"""Augmentation and batches: what they compute, and that seed and step alone decide it."""

import colorsys
import functools

import numpy as np
import pytest
from PIL import Image

from kdjax.data import pipeline, sets, tiles
from kdjax.data._tensorflow import tf
from kdjax.data.augment import augment
from kdjax.data.augmentation import IMAGE_PADDING, AugmentOptions, Draws, draw
from kdjax.data.distortion import distort
from kdjax.data.order import example_indices
from kdjax.errors import UserError

PLAIN = AugmentOptions(
    (16, 24), scale_range=(1, 1), max_class_share=1, flip=False, photometric=False
)


def options(**changes):
    return AugmentOptions(**{**vars(PLAIN), **changes})


def noise(height, width, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    return image, rng.integers(0, 5, (height, width)).astype(np.uint8)


def checkerboard(height, width, cell):
    """An image whose colour tells the label: class 3 is pure blue, 6 pure orange."""
    y, x = np.mgrid[:height, :width]
    odd = (y // cell + x // cell) % 2 == 1
    image = np.where(odd[..., None], [230, 140, 20], [20, 40, 200]).astype(np.uint8)
    return image, np.where(odd, 6, 3).astype(np.uint8)


def numbers(chosen, position):
    """The draws of one example."""
    return Draws(*(value[0] for value in draw(chosen, 0, [position])))


def run(image, label, seed, chosen):
    draws = Draws(*map(tf.constant, numbers(chosen, seed)))
    crop = compiled(chosen)(tf.constant(image), tf.constant(label), draws)
    return crop["image"].numpy(), crop["label"].numpy()


@functools.cache
def compiled(chosen):
    """A graph, as in the pipeline, for examples of any size."""
    signature = [
        tf.TensorSpec([None, None, 3], tf.uint8),
        tf.TensorSpec([None, None], tf.uint8),
        Draws(*(tf.TensorSpec(value.shape, value.dtype) for value in numbers(chosen, 0))),
    ]

    def run(image, label, draws):
        return augment(lambda begin, end: tiles.whole(image), label, draws, chosen)

    return tf.function(run, signature)


def find_crop(whole, crop):
    """All corners at which `crop` occurs in `whole`."""
    windows = np.lib.stride_tricks.sliding_window_view(whole, crop.shape)
    return np.argwhere((windows == crop).all(axis=(-2, -1)))


def numpy_nearest(label, height, width):
    """Label scaled by the rule that a pixel takes the value under its centre."""
    rows = np.floor((np.arange(height) + 0.5) * label.shape[0] / height).astype(int)
    columns = np.floor((np.arange(width) + 0.5) * label.shape[1] / width).astype(int)
    return label[rows][:, columns]


def numpy_bilinear(image, height, width):
    """Image scaled with half-pixel centres, one axis after the other, in float64."""
    result = image.astype(np.float64)
    for axis, target in ((0, height), (1, width)):
        size = result.shape[axis]
        place = np.clip((np.arange(target) + 0.5) * size / target - 0.5, 0, size - 1)
        low = np.floor(place).astype(int)
        weight = (place - low).reshape([-1 if a == axis else 1 for a in range(3)])
        low_pixels = np.take(result, low, axis)
        high_pixels = np.take(result, np.minimum(low + 1, size - 1), axis)
        result = low_pixels * (1 - weight) + high_pixels * weight
    return result


def test_a_crop_at_scale_one_is_a_window_of_the_example():
    image, label = noise(40, 50)
    corners = set()
    for seed in range(40):
        crop, crop_label = run(image, label, seed, PLAIN)
        ((top, left),) = find_crop(label, crop_label)
        np.testing.assert_array_equal(crop, image[top : top + 16, left : left + 24])
        corners.add((top, left))
    assert len(corners) > 30
    tops, lefts = np.array(sorted(corners)).T
    assert tops.min() < 4
    assert tops.max() > 20
    assert lefts.min() < 4
    assert lefts.max() > 22


def test_all_corners_can_be_drawn():
    image, label = noise(17, 25)
    drawn = {tuple(*find_crop(label, run(image, label, seed, PLAIN)[1])) for seed in range(60)}
    assert drawn == {(0, 0), (0, 1), (1, 0), (1, 1)}


@pytest.mark.parametrize("scale", [0.5, 0.73, 1.0, 1.41, 2.0])
@pytest.mark.parametrize("shape", [(40, 60), (41, 57)])
def test_a_scaled_crop_is_a_window_of_the_scaled_example(scale, shape):
    image, label = noise(*shape)
    height, width = np.round(np.array(shape, np.float32) * np.float32(scale)).astype(int)
    scaled, scaled_label = numpy_bilinear(image, height, width), numpy_nearest(label, height, width)
    for seed in range(4):
        crop, crop_label = run(image, label, seed, options(scale_range=(scale, scale)))
        ((top, left),) = find_crop(scaled_label, crop_label)
        expected = scaled[top : top + 16, left : left + 24]
        # Rounded to whole numbers; a place between two pixels is known to 1 / 2048, half of which
        # in both directions is at most an eighth of a level.
        np.testing.assert_allclose(crop, expected, atol=0.5 + 255 / 2048)


def mmcv_size(height, width, base_size, ratio):
    """How mmcv's RandomResize computes the new height and width, keeping the ratio."""
    long, short = (int(side * ratio) for side in base_size)
    factor = min(long / max(height, width), short / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)


@pytest.mark.parametrize("ratio", [0.5, 0.77, 1.0, 1.9])
@pytest.mark.parametrize("shape", [(37, 50), (50, 37), (12, 96), (40, 40)])
@pytest.mark.parametrize("base_size", [(160, 40), (52, 52)])
def test_scales_are_of_the_base_size(base_size, shape, ratio):
    image, label = noise(*shape)
    height, width = mmcv_size(*shape, base_size, ratio)
    scaled, scaled_label = numpy_bilinear(image, height, width), numpy_nearest(label, height, width)
    chosen = options(base_size=base_size, scale_range=(ratio, ratio), crop_size=(110, 310))
    crop, crop_label = run(image, label, 0, chosen)
    np.testing.assert_array_equal(crop_label[:height, :width], scaled_label)
    assert (crop_label != 255).sum() == height * width
    np.testing.assert_allclose(crop[:height, :width], scaled, atol=0.5 + 255 / 2048)


def test_scales_fill_their_range():
    image, label = checkerboard(64, 64, 1)
    seen = []
    for seed in range(60):
        chosen = options(crop_size=(140, 140), scale_range=(0.5, 2))
        seen.append((run(image, label, seed, chosen)[1] != 255).any(axis=1).sum() / 64)
    assert 0.5 <= min(seen) < 0.6
    assert 1.9 < max(seen) <= 2
    assert np.mean(seen) == pytest.approx(1.25, abs=0.15)


def test_what_an_image_does_not_cover_is_padded():
    image, label = noise(10, 30)
    crop, crop_label = run(image, label, 3, PLAIN)
    assert (crop[10:] == IMAGE_PADDING).all()
    assert (crop_label[10:] == 255).all()
    assert (crop_label[:10] != 255).all()


def test_padding_keeps_its_colour_under_distortion():
    image, label = noise(10, 30)
    for seed in range(8):
        crop, _ = run(image, label, seed, options(photometric=True))
        assert (crop[10:] == IMAGE_PADDING).all()


def test_half_of_the_examples_are_mirrored():
    image, label = noise(16, 24)
    mirrored = 0
    for seed in range(100):
        crop, crop_label = run(image, label, seed, options(flip=True))
        if (crop == image[:, ::-1]).all():
            np.testing.assert_array_equal(crop_label, label[:, ::-1])
            mirrored += 1
        else:
            np.testing.assert_array_equal(crop, image)
            np.testing.assert_array_equal(crop_label, label)
    assert 35 < mirrored < 65


@pytest.mark.parametrize(
    "changes",
    [
        {"scale_range": (0.5, 2.0)},
        {"flip": True},
        {"photometric": True},
        {"max_class_share": 0.5},
        {"scale_range": (0.5, 2.0), "flip": True, "photometric": True, "max_class_share": 0.75},
    ],
)
def test_image_and_label_stay_aligned(changes):
    image, label = checkerboard(60, 80, 8)
    for seed in range(12):
        crop, crop_label = run(image, label, seed, options(**changes))
        inside = crop_label != 255
        assert set(np.unique(crop_label[inside])) <= {3, 6}
        # Red exceeds blue in every distorted orange, and blue red in every distorted blue; where
        # the image blends two cells, the half that is nearer decides both colour and label.
        signed = crop[..., 0].astype(int) - crop[..., 2]
        blended = np.abs(signed) < 60
        right = (signed > 0) == (crop_label == 6)
        assert right[inside & ~blended].all()
        assert (inside & ~blended).sum() > 0.5 * inside.sum()


def test_distortion_changes_colours_within_its_bounds():
    gray = np.full((16, 24, 3), 100, np.uint8)
    label = np.zeros((16, 24), np.uint8)
    levels = set()
    for seed in range(100):
        crop, _ = run(gray, label, seed, options(photometric=True))
        assert np.ptp(crop) == 0  # grey stays grey
        levels.add(int(crop[0, 0, 0]))
    assert 100 in levels
    # Brightness by 32 at most and contrast by a half at most, in the order of brightness first.
    assert min(levels) >= 34
    assert max(levels) <= 198
    assert len(levels) > 40


def test_distortion_is_that_of_its_definition():
    image, _ = noise(4, 6)
    amounts = {"brightness": 16.0, "contrast": 0.7, "saturation": 1.4, "hue": -0.08}
    changes = {key: np.float32(value) for key, value in amounts.items()}
    draws = numbers(PLAIN, 0)._replace(contrast_first=np.bool_(False), **changes)
    result = distort(tf.constant(image), Draws(*map(tf.constant, draws))).numpy()
    bright = np.clip(image + 16.0, 0, 255) / 255
    for row, column in np.ndindex(4, 6):
        hue, saturation, value = colorsys.rgb_to_hsv(*bright[row, column])
        saturation = min(saturation * 1.4, 1)
        changed = np.array(colorsys.hsv_to_rgb((hue - 0.08) % 1, saturation, value))
        np.testing.assert_allclose(result[row, column], changed * 255 * 0.7, atol=0.51)


def test_crops_full_of_one_class_are_drawn_again():
    image, label = noise(64, 64)
    label[:] = 0
    label[:, 50:] = np.arange(64)[:, None] % 2 + 1

    def filled(share):
        chosen = options(max_class_share=share)
        crops = [run(image, label, seed, chosen)[1] for seed in range(60)]
        return sum(np.bincount(crop.ravel()).max() >= 0.75 * crop.size for crop in crops)

    assert filled(1) > 30
    assert filled(0.75) < 10


def test_a_scene_of_one_class_is_taken_after_all():
    image, label = noise(64, 64)
    _, crop_label = run(image, label * 0, 0, options(max_class_share=0.75))
    assert (crop_label == 0).all()
    _, crop_label = run(image, label * 0 + 255, 0, options(max_class_share=0.75))
    assert (crop_label == 255).all()


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


class CountingRecords:
    """Records that count how many of them are fetched."""

    def __init__(self, records):
        self._records, self.fetched = records, 0
        self.lengths, self.weights, self.decode = records.lengths, (1,), records.decode

    def fetch(self, indices):
        def count(indices):
            self.fetched += len(indices)
            return indices

        counted = tf.numpy_function(count, [indices], tf.int64)
        return self._records.fetch(tf.ensure_shape(counted, indices.shape))


def batches(dataset, num_steps, **changes):
    settings = {**SETTINGS, **changes}
    return list(pipeline.train_batches(dataset.records("train"), num_steps=num_steps, **settings))


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
    return batches(dataset, 200)


@pytest.mark.parametrize("num_threads", [1, 8])
def test_threads_change_nothing(dataset, first_batches, num_threads):
    assert_same(batches(dataset, 200, num_threads=num_threads), first_batches)


@pytest.mark.parametrize("count", [2, 4])
def test_the_rows_of_all_processes_are_the_batch_of_one(dataset, first_batches, count):
    read = []
    for process in range(count):
        records = CountingRecords(dataset.records("train"))
        shares = pipeline.train_batches(
            records, **SETTINGS, num_steps=200, process_index=process, process_count=count
        )
        read.append(list(shares))
        assert records.fetched == 200 * 4 // count
    whole = [
        {key: np.concatenate([share[key] for share in shares]) for key in shares[0]}
        for shares in zip(*read, strict=True)
    ]
    assert_same(whole, first_batches)


def test_a_run_continues_with_the_batch_it_would_have_seen(dataset, first_batches):
    records = CountingRecords(dataset.records("train"))
    resumed = list(pipeline.train_batches(records, **SETTINGS, num_steps=200, start_step=137))
    assert_same(resumed, first_batches[137:])
    assert records.fetched == 63 * 4


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
    (batch,) = batches(dataset, 1, batch_size=20, options=PLAIN)
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
    """Each of the seven validation images once, in its upper left corner, and blank otherwise."""
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
                image[:height, :width], label[:height, :width] = IMAGE_PADDING, 255
                seen.append(index)
            else:
                assert index == -1
            assert (image == IMAGE_PADDING).all()
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


def test_evaluation_can_be_of_some_images(dataset):
    found = list(pipeline.eval_batches(dataset, "val", batch_size=2, indices=[6, 1, 4]))
    assert sum(batch["valid"].sum() for batch in found) == 3
    assert sorted(i for batch in found for i in batch["index"] if i >= 0) == [1, 4, 6]
    assert pipeline.example_names(dataset, "val") == [str(i) for i in range(7)]


def test_an_unknown_split_or_example_is_named_at_once(dataset):
    with pytest.raises(UserError, match="no split 'test'; it has train, val"):
        dataset.records("test")
    with pytest.raises(UserError, match="no split 'test'"):
        pipeline.eval_batches(dataset, "test", batch_size=1)
    with pytest.raises(UserError, match="has no example 7; its 7 count from 0"):
        pipeline.load_examples(dataset, "val", [0, 7])


@pytest.fixture(scope="module")
def draw_scene():
    draw = sets._builder_class("shapes")._generate_examples.__globals__["scene"]
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
