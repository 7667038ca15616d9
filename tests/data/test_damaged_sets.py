"""Damaged prepared sets, and original files that only TensorFlow refuses."""

import json
import shutil
import struct

import numpy as np
import pytest
from PIL import Image

from kdjax.data import sets
from kdjax.data.loading import pipeline, sampling, sources
from kdjax.data.loading.sampling import AugmentOptions
from kdjax.data.preparing import image_io, prepared
from kdjax.utils.errors import UserError


def write_source(root, count=4):
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (root / kind / "train").mkdir(parents=True)
    for number in range(count):
        image = rng.integers(0, 256, (6, 8, 3)).astype(np.uint8)
        Image.fromarray(image).save(root / f"images/train/{number}.png")
        Image.fromarray(image[..., 0] % 3).save(root / f"labels/train/{number}.png")
    return root


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with the source of a set, and the prepared set in `data`."""
    root = tmp_path_factory.mktemp("whole")
    sets.prepare("folder", root / "data", source=write_source(root / "source"))
    return root


@pytest.fixture
def data(whole, tmp_path):
    """A copy of the prepared set to damage."""
    shutil.copytree(whole / "data", tmp_path / "data")
    return tmp_path / "data"


def shard(data):
    return data / "folder" / "1.0.0" / "folder-train.array_record-00000-of-00001"


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def remove(path):
    path.unlink()


def train(records, **changes):
    settings = {"batch_size": 2, "seed": 0, "steps": range(4), "options": AugmentOptions((4, 4))}
    return list(pipeline.train_batches(records, **{**settings, **changes}))


def refused(function, *arguments, **options):
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("damage", [half, empty, remove])
def test_a_damaged_shard_is_named(whole, data, damage):
    damage(shard(data))
    for function, options in (
        (sets.open_set, {}),
        (sets.verify, {}),
        (sets.prepare, {"source": whole / "source"}),
    ):
        message = refused(function, "folder", data, **options)
        assert f"{data}/folder/1.0.0 is damaged (" in message
        assert "()" not in message
        assert message.endswith(f"; remove {data}/folder/1.0.0 and prepare it again")


@pytest.mark.parametrize(
    "name", ["dataset_info.json", "features.json", "metadata.json", "kdjax.json"]
)
@pytest.mark.parametrize("content", [None, "", "[]", "{}"])
def test_a_damaged_description_is_named(whole, data, name, content):
    path = data / "folder" / "1.0.0" / name
    path.unlink() if content is None else path.write_text(content)
    if (name, content) == ("kdjax.json", None):  # which makes a set complete
        assert "has not been prepared" in refused(sets.open_set, "folder", data)
        return
    for function in (sets.open_set, sets.verify):
        message = refused(function, "folder", data)
        assert "damaged" in message
        assert name in message or content == "{}"
        assert message.endswith(f"; remove {data}/folder/1.0.0 and prepare it again")
    assert "damaged" in refused(sets.prepare, "folder", data, source=whole / "source")


def test_a_record_that_changed_is_named_by_whatever_reads_it(data):
    content = bytearray(shard(data).read_bytes())
    content[200] ^= 16  # in the first example
    shard(data).write_bytes(content)
    dataset = sets.open_set("folder", data)
    records = dataset.records("train")
    for function, arguments in (
        (train, [records]),
        (train, [sources.Mixture([sources.Part(records)])]),
        (records.names, []),
        (lambda: list(pipeline.eval_batches(dataset, "train", batch_size=2)), []),
        (lambda: list(records.decoded(range(4))), []),
        (prepared.measure_split, [dataset, "train"]),
    ):
        assert f"{data}/folder/1.0.0 is damaged (" in refused(function, *arguments)


def without_end(data):
    return data[:-12]


def wrong_checksum(kind):
    def damage(data):
        place = 8
        while data[place + 4 : place + 8] != kind:
            place += 12 + struct.unpack(">I", data[place : place + 4])[0]
        place += 8 + struct.unpack(">I", data[place : place + 4])[0]
        return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]

    return damage


# Pillow reads all of these.
PNG_DAMAGES = [without_end, wrong_checksum(b"IDAT"), wrong_checksum(b"IEND")]


@pytest.mark.parametrize("damage", PNG_DAMAGES)
@pytest.mark.parametrize(
    ("kind", "tiles"), [("images", False), ("images", True), ("labels", False)]
)
def test_what_training_could_not_read_is_not_prepared(tmp_path, damage, kind, tiles):
    source = write_source(tmp_path / "source")
    path = source / kind / "train" / "2.png"
    path.write_bytes(damage(path.read_bytes()))
    with Image.open(path) as image:
        image.load()
    message = refused(sets.prepare, "folder", tmp_path / "data", source=source, tiles=tiles)
    assert f"{path} cannot be read as an image: Invalid PNG data" in message
    assert "--skip-damaged" in message
    dataset = sets.prepare(
        "folder", tmp_path / "data", source=source, tiles=tiles, skip_damaged=True
    )
    assert dataset.splits == {"train": 3}


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_that_is_cut_is_not_prepared(tmp_path, mode):
    source = write_source(tmp_path / "source")
    place = source / "images/train/2.png"
    with Image.open(place) as image:
        shape = image.size[::-1]
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    path = place.with_suffix(".jpg")
    Image.fromarray(noise).convert(mode).save(path, quality=95)
    place.unlink()
    whole = path.read_bytes()
    # Cameras leave bytes before the end of whole files.
    path.write_bytes(whole[:-2] + bytes(9) + whole[-2:])
    sets.prepare("folder", tmp_path / "whole", source=source)
    begin = whole.index(b"\xff\xda")
    path.write_bytes(whole[: begin + (len(whole) - begin) // 2])
    message = refused(sets.prepare, "folder", tmp_path / "data", source=source)
    assert f"{path} cannot be read as an image: " in message
    dataset = sets.prepare("folder", tmp_path / "data", source=source, skip_damaged=True)
    assert dataset.splits == {"train": 3}


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_a_split_of_damaged_files_alone_is_named(tmp_path, kind):
    source = write_source(tmp_path / "source")
    for path in (source / kind / "train").iterdir():
        path.write_bytes(b"")
    message = refused(sets.prepare, "folder", tmp_path / "data", source=source, skip_damaged=True)
    assert message.startswith(f"no image of split train can be read: {source / kind}/train/0.png")


def test_an_example_that_cannot_be_decoded_is_named(tmp_path, monkeypatch):
    # Old sets were prepared without reading files by TensorFlow.
    monkeypatch.setattr(image_io, "_check_for_training", lambda *arguments: None)
    source = write_source(tmp_path / "source")
    path = source / "images/train/2.png"
    path.write_bytes(without_end(path.read_bytes()))
    dataset = sets.prepare("folder", tmp_path / "data", source=source)
    records = dataset.records("train")
    named = f'{dataset.directory} is damaged (split train: example "2" cannot be decoded: Invalid'
    for source in (records, sources.Mixture([sources.Part(records)])):
        assert named in refused(train, source)
    assert named in refused(lambda: list(records.decoded(range(4))))
    # The batches before it do not change.
    steps = pipeline.train_batches(
        records, batch_size=1, seed=0, steps=range(4), options=AugmentOptions((4, 4))
    )
    order = [int(i) for i in sampling.example_indices(np.arange(4), 0, [4])]
    for _ in range(order.index(2)):
        next(steps)
    assert named in refused(next, steps)


def test_a_source_that_changed_since_is_remarked(tmp_path):
    source = write_source(tmp_path / "source")
    lines = []
    # The prepared files in the source do not count.
    data = source / "data"
    first = sets.prepare("folder", data, source=source, report=lines.append)
    sets.prepare("folder", data, source=source, report=lines.append)
    assert lines == []
    shutil.copy(source / "images/train/0.png", source / "images/train/4.png")
    again = sets.prepare("folder", data, source=source, report=lines.append)
    assert again.fingerprint == first.fingerprint
    assert lines == [
        f"{source} has changed since {first.directory} was made from it; remove "
        f"{first.directory} to prepare the set again"
    ]
    receipt = first.directory / "kdjax.json"
    older = {
        key: value for key, value in json.loads(receipt.read_text()).items() if "state" not in key
    }
    receipt.write_text(json.dumps(older))
    sets.prepare("folder", data, source=source, report=lines.append)
    assert len(lines) == 1
