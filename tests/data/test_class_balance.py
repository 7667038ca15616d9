"""Class counts, the weights that follow from them, and crops that are drawn by class."""

import numpy as np
import pytest
from PIL import Image

from kdjax import config as configuration
from kdjax.config import extra_set
from kdjax.data import sets
from kdjax.data.class_balance import class_sampling, class_weights
from kdjax.data.dataset import Dataset
from kdjax.data.loading.records import CLASS_COUNTS
from kdjax.data.loading.sampling import AugmentOptions, draw
from kdjax.data.run_data import RunData
from kdjax.utils.errors import UserError

COUNTS = np.array([[90, 10, 0, 0], [80, 0, 20, 0], [100, 0, 0, 0]])


def test_weights_are_the_formulas():
    inverse = class_weights(COUNTS, "inverse_frequency")
    np.testing.assert_allclose(inverse, [300 / 3 / 270, 300 / 3 / 10, 300 / 3 / 20, 1])
    # The mean over the labeled pixels is 1.
    np.testing.assert_allclose(np.sum(COUNTS.sum(0) * inverse) / COUNTS.sum(), 1)
    frequencies = np.array([270 / 300, 10 / 100, 20 / 100])
    expected = [*(np.median(frequencies) / frequencies), 1]
    np.testing.assert_allclose(class_weights(COUNTS, "median_frequency"), expected)


def test_classes_are_drawn_equally_and_from_images_that_have_them():
    positions, options = np.arange(4000), AugmentOptions(class_uniform=0.75)
    draws, before = draw(options, 5, positions), np.full(4000, 2)
    indices, found = class_sampling(COUNTS, 0.75)(before, draws, 5, positions)
    shares = [np.mean(found.wanted == number) for number in range(-1, 4)]
    np.testing.assert_allclose(shares, [0.25, 0.25, 0.25, 0.25, 0], atol=0.03)
    assert (indices[found.wanted == -1] == 2).all()
    assert (indices[found.wanted == 1] == 0).all()
    assert (indices[found.wanted == 2] == 1).all()
    assert set(indices[found.wanted == 0]) == {0, 1, 2}
    # The numbers depend on seed and position alone, and nothing else is drawn anew.
    again, alone = class_sampling(COUNTS, 0.75)(
        before[70:90], draw(options, 5, positions[70:90]), 5, positions[70:90]
    )
    np.testing.assert_array_equal(again, indices[70:90])
    np.testing.assert_array_equal(alone.anchor, found.anchor[70:90])
    np.testing.assert_array_equal(found.corners, draws.corners)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Twelve images of 60 x 80; the second class is one pixel of the first image."""
    source, data = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("data")
    for split in ("train", "val"):
        for index in range(12):
            label = np.zeros((60, 80), np.uint8)
            label[:, 40:] = 2
            label[0] = 255
            if index == 0:
                label[50, 5] = 1
            for kind, pixels in (("images", np.stack([label] * 3, -1)), ("labels", label)):
                path = source / kind / split / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    sets.prepare("folder", data, source=source)
    return data


@pytest.fixture
def config(data_dir):
    config = configuration.default()
    config.data.update({"name": "folder", "data_dir": str(data_dir), "batch_size": 8})
    config.data.update({"crop_size": (16, 16), "scale_range": (1.0, 1.0), "photometric": False})
    return config


EXPECTED = np.array([[59 * 40 - (index == 0), index == 0, 59 * 40] for index in range(12)])


def by_name(records, counts):
    """Counts in the order of the names, which `prepare` sorts as texts."""
    return counts[np.argsort(np.array(records.names(), int))]


def test_prepare_writes_the_counts_and_older_sets_are_counted(data_dir, tmp_path, monkeypatch):
    dataset = sets.open_set("folder", data_dir)
    records = dataset.records("train")
    monkeypatch.setattr("PIL.Image.open", None)  # nothing is decoded
    np.testing.assert_array_equal(by_name(records, records.class_counts(3)), EXPECTED)
    monkeypatch.undo()
    records.directory = tmp_path  # as if an older version had prepared it
    np.testing.assert_array_equal(by_name(records, records.class_counts(3)), EXPECTED)


def test_damaged_counts_are_an_error(data_dir, tmp_path):
    records = sets.open_set("folder", data_dir).records("train")
    records.directory = tmp_path
    (tmp_path / CLASS_COUNTS).write_bytes(b"PK no archive")
    with pytest.raises(UserError, match=r"is damaged \(split train: class_counts\.npz"):
        records.class_counts(3)


def test_every_crop_by_class_shows_it(config):
    config.data.class_uniform = 1.0
    for cache in ("none", "host"):
        config.data.cache = cache
        images = RunData(configuration.read(config).data)
        found = [batch["label"] for batch in images.train_batches(first_step=0, steps=6, seed=1)]
        shares = np.mean([[np.any(crop == c) for c in range(3)] for crop in np.concatenate(found)])
        single = np.mean([np.any(crop == 1) for crop in np.concatenate(found)])
        # A third of all crops; by chance it would be one in a thousand.
        assert 0.15 < single < 0.55
        assert shares > 1 / 3


def test_weights_of_a_run_leave_out_sets_without_labels(config, data_dir):
    config.data.mixture = {"more": extra_set("folder", data_dir=str(data_dir), labelled=False)}
    images = RunData(configuration.read(config).data)
    weights = images.class_weights("inverse_frequency")
    total = EXPECTED.sum(0)
    np.testing.assert_allclose(weights, total.sum() / 3 / total)


def test_a_set_without_any_label_is_refused():
    example = {"image": np.zeros((8, 8, 3), np.uint8), "label": np.full((8, 8), 255)}
    data = Dataset({"train": [example], "val": [example]}, ["a", "b"])
    images = RunData(configuration.read(configuration.default(), data).data, data)
    with pytest.raises(UserError, match="no pixel of the split train has a label; leave config"):
        images.class_weights("median_frequency")
