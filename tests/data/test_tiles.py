"""Images in tiles: a crop decodes its own tiles, and equals the crop of a whole image."""

import functools
import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from kdjax.data import sets
from kdjax.data._tensorflow import tf
from kdjax.data.loading import pipeline, records
from kdjax.data.loading.sampling import AugmentOptions

SIZES = [(20, 30), (16, 48), (8, 16), (41, 17)]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(records, "TILE", (8, 16))
    # Trace with this tile size, instead of reusing an earlier trace.
    monkeypatch.setattr(
        records,
        "_decoder",
        lambda bands: functools.partial(records.decode_example, bands=bands),
    )


def noise(height, width):
    return np.random.default_rng(height).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize("shape", SIZES)
def test_a_window_is_decoded_from_the_tiles_it_touches(shape):
    image, encoded = noise(*shape), records.encode_tiles(noise(*shape))
    per_row = -(-shape[1] // 16)
    assert len(encoded) == -(-shape[0] // 8) * per_row
    rng = np.random.default_rng(0)
    for _ in range(8):
        (top, bottom), (left, right) = (np.sort(rng.integers(0, size, 2)) for size in shape)
        touched = {
            row * per_row + column
            for row in range(top // 8, bottom // 8 + 1)
            for column in range(left // 16, right // 16 + 1)
        }
        # Tiles that must not be decoded are unreadable.
        readable = [tile if n in touched else b"no image" for n, tile in enumerate(encoded)]
        ends = tf.constant([[top, left], [bottom + 1, right + 1]], tf.int32)
        window = records.decode_window(tf.constant(readable), tf.constant(shape), *ends)
        assert len(window.tiles) == len(touched)
        found = records.pixels(window, *ends)
        np.testing.assert_array_equal(found, image[top : bottom + 1, left : right + 1])


@pytest.fixture
def source(tmp_path):
    """A folder of images, the last of which is a JPEG."""
    for number, shape in enumerate([*SIZES, (40, 40)]):
        kind = "jpg" if number == len(SIZES) else "png"
        image = Image.fromarray(noise(*shape))
        label = Image.fromarray(noise(*shape)[..., 0] % 3)
        for pixels, path in (
            (image, f"images/train/{number}.{kind}"),
            (label, f"labels/train/{number}.png"),
        ):
            path = tmp_path / "source" / path
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels.save(path)
    return tmp_path / "source"


def test_a_set_in_tiles_is_the_same_set(source, tmp_path):
    files = sets.prepare("folder", tmp_path / "files", source=source)
    tiled = sets.prepare("folder", tmp_path / "tiles", source=source, tiles=True)
    settings = {"batch_size": 5, "seed": 0, "steps": range(4), "options": AugmentOptions((16, 24))}
    for whole, part in zip(
        pipeline.train_batches(files.records("train"), **settings),
        pipeline.train_batches(tiled.records("train"), **settings),
        strict=True,
    ):
        for key in whole:
            np.testing.assert_array_equal(part[key], whole[key])
    examples = pipeline.load_examples(tiled, "train", range(5))
    for example, expected in zip(
        examples, pipeline.load_examples(files, "train", range(5)), strict=True
    ):
        np.testing.assert_array_equal(example["image"], expected["image"])
    assert tiled.fingerprint != files.fingerprint
    assert sets.verify("folder", tmp_path / "tiles").fingerprint == tiled.fingerprint
    assert json.loads((tiled.directory / "kdjax.json").read_text())["made_from"]["tiles"]


def test_a_jpeg_stays_as_it_is_and_tfds_reads_the_records(source, tmp_path):
    tiled = sets.prepare("folder", tmp_path, source=source, tiles=True)
    read = tfds.builder_from_directory(tiled.directory).as_data_source("train")
    assert [len(example["image"]) for example in read] == [6, 6, 1, 12, 1]
    record = tf.train.Example.FromString(*tiled.records("train").read_serialized([4]))
    (image,) = record.features.feature["image"].bytes_list.value
    assert image == (source / "images" / "train" / "4.jpg").read_bytes()
