"""Preparing data sets: conversion, refused sources, and no leftovers."""

import json
import os
import pathlib
import re
import struct
import subprocess
import sys
import tempfile
import threading
import zlib

import numpy as np
import pytest
import warm
from PIL import Image

from kdjax import config as configuration
from kdjax.data import sets
from kdjax.data.loading import pipeline
from kdjax.data.preparing import prepared
from kdjax.data.preparing.builder import find_builder
from kdjax.data.preparing.classes import known_classes, original_labels
from kdjax.data.run_data import RunData
from kdjax.utils import environment
from kdjax.utils.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]


def pixels_of(path):
    with Image.open(path) as image:
        return np.array(image)


def write_pair(source, split, name, label, image=None):
    """Writes a label of the given values, and an image of its size."""
    label = np.asarray(label, np.uint8)
    if image is None:
        image = np.repeat(label[..., None] * 20, 3, axis=2)
    for kind, pixels in (("images", image), ("labels", label)):
        path = source / kind / split / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


@pytest.fixture
def source(tmp_path):
    """A tree with three images to train on and one each to validate and to test."""
    root = tmp_path / "source"
    for split, names in (("train", ["a", "b", "town/c"]), ("val", ["d"]), ("test", ["e"])):
        for number, name in enumerate(names):
            write_pair(root, split, name, np.arange(48).reshape(6, 8) % (3 + number))
    return root


def prepare(source, tmp_path, **options):
    return sets.prepare("folder", tmp_path / "data", source=source, **options)


def load(dataset, split="train"):
    return pipeline.load_examples(dataset, split, range(dataset.splits[split]))


def test_folder_is_converted_whole(source, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    dataset = prepare(source, tmp_path)
    assert [path.name for path in (tmp_path / "data" / "folder").iterdir()] == ["1.0.0"]
    assert not list((tmp_path / "temporary").iterdir())
    assert dataset.splits == {"train": 3, "val": 1, "test": 1}
    assert dataset.class_names == tuple(f"class_{i}" for i in range(5))
    assert dataset.palette.shape == (5, 3)
    assert dataset.palette.dtype == np.uint8
    assert len(np.unique(dataset.palette, axis=0)) == 5
    examples = load(dataset)
    assert [example["name"] for example in examples] == ["a", "b", "town/c"]
    for number, example in enumerate(examples):
        np.testing.assert_array_equal(example["label"], np.arange(48).reshape(6, 8) % (3 + number))
        np.testing.assert_array_equal(example["image"], example["label"][..., None] * [20, 20, 20])


def test_an_eight_bit_rgb_file_is_kept_as_it_is(source, tmp_path):
    path = source / "images" / "train" / "a.jpg"
    Image.fromarray(pixels_of(path.with_suffix(".png"))).save(path, quality=80)
    path.with_suffix(".png").unlink()
    dataset = prepare(source, tmp_path)
    (record,) = dataset.records("train").read_serialized([0])
    assert path.read_bytes() in record


def test_classes_are_named_by_a_file(source, tmp_path):
    names = ["road", "sky", "tree", "car", "person", "never seen"]
    (source / "classes.txt").write_text("\n".join(names) + "\n")
    dataset = prepare(source, tmp_path)
    assert dataset.class_names == tuple(names)
    assert dataset.num_classes == 6


def test_ignored_values_become_255_and_do_not_count(source, tmp_path):
    write_pair(source, "train", "a", [[0, 1, 11, 255]])
    write_pair(source, "train", "b", [[0, 1, 12, 255]])
    dataset = prepare(source, tmp_path, ignore=[11, 12])
    assert dataset.num_classes == 5
    for example in load(dataset)[:2]:
        np.testing.assert_array_equal(example["label"], [[0, 1, 255, 255]])


@pytest.mark.parametrize("mode", ["L", "P", "LA", "RGBA", "CMYK"])
def test_images_of_any_kind_become_rgb(source, tmp_path, mode):
    gray = np.tile(np.linspace(0, 255, 8).astype(np.uint8), (6, 1))
    image, suffix = Image.fromarray(gray), ".png"
    if mode in ("RGBA", "LA"):
        image = image.convert(mode)
        image.putalpha(7)
    elif mode == "CMYK":
        image, suffix = image.convert("RGB").convert(mode), ".tif"
    else:
        image = image.convert(mode)
    path = source / "images" / "train" / "a.png"
    path.unlink()
    image.save(path.with_suffix(suffix))
    with Image.open(path.with_suffix(suffix)) as saved:
        assert saved.mode == mode
    example = load(prepare(source, tmp_path))[0]
    np.testing.assert_array_equal(example["image"], np.repeat(gray[..., None], 3, 2))


def test_a_palette_label_is_read_by_its_indices(source, tmp_path):
    label = np.array([[0, 1, 2, 2]], np.uint8)
    write_pair(source, "train", "a", label)
    image = Image.fromarray(label)
    image.putpalette([200, 9, 9, 9, 200, 9, 9, 9, 200])
    image.save(source / "labels" / "train" / "a.png")
    np.testing.assert_array_equal(load(prepare(source, tmp_path))[0]["label"], label)


def _no_images(source):
    (source / "images").rename(source / "pictures")
    return "images/"


def _no_labels(source):
    (source / "labels").rename(source / "masks")
    return "labels/"


def _no_train(source):
    (source / "images" / "train").rename(source / "images" / "training")
    (source / "labels" / "train").rename(source / "labels" / "training")
    return "images/train/"


def _no_label_split(source):
    (source / "labels" / "val").rename(source / "moved")
    return "labels/val/"


def _empty_split(source):
    (source / "images" / "val" / "d.png").unlink()
    (source / "labels" / "val" / "d.png").unlink()
    return "images/val holds no images"


def _no_label(source):
    (source / "labels" / "train" / "town" / "c.png").unlink()
    return "images/train/town/c.png has no label"


def _no_image(source):
    (source / "images" / "train" / "b.png").unlink()
    return "labels/train/b.png has no image"


def _two_images(source):
    path = source / "images" / "train" / "a.png"
    Image.fromarray(pixels_of(path)).save(path.with_suffix(".jpg"))
    return "a.jpg"


def _sizes_differ(source):
    Image.new("L", (8, 5)).save(source / "labels" / "train" / "b.png")
    return "b.png is 8 x 5 pixels"


def _value_too_high(source):
    (source / "classes.txt").write_text("one\ntwo\nthree\nfour\n")
    return "c.png holds the value 4; allowed are 0..3"


def _wide_value(source):
    label = Image.fromarray(np.full((6, 8), 300, np.uint16))
    label.save(source / "labels" / "train" / "b.png")
    return "b.png holds the value 300"


def _color_label(source):
    Image.new("CMYK", (8, 6)).save(source / "labels" / "train" / "b.tif")
    (source / "labels" / "train" / "b.png").unlink()
    return "b.tif has mode CMYK"


def _truncated(source):
    path = source / "images" / "train" / "b.png"
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-60])
    return "images/train/b.png cannot be read"


def _truncated_label(source):
    path = source / "labels" / "train" / "b.png"
    path.write_bytes(path.read_bytes()[:50])
    return "labels/train/b.png cannot be read"


def _not_an_image(source):
    (source / "images" / "train" / "b.png").write_text("hello")
    return "images/train/b.png cannot be read"


def _zero_bytes(source):
    (source / "images" / "train" / "b.png").write_bytes(b"")
    return "images/train/b.png cannot be read"


def _float_image(source):
    path = source / "images" / "train" / "b"
    path.with_suffix(".png").unlink()
    Image.fromarray(np.zeros((6, 8), np.float32)).save(path.with_suffix(".tif"))
    return "b.tif has 32 bits a channel, and images have 8: scale its values"


def _wide_image(source, suffix):
    path = source / "images" / "train" / "b"
    path.with_suffix(".png").unlink()
    Image.fromarray(np.full((6, 8), 10_000, np.uint16)).save(path.with_suffix(suffix))
    return f"b{suffix} has 16 bits a channel, and images have 8: scale its values"


def _wide_gray_png(source):
    return _wide_image(source, ".png")


def _wide_gray_tiff(source):
    return _wide_image(source, ".tif")


def _wide_color_png(source):
    # Pillow reads such files, but does not write them.
    def chunk(kind, data):
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", 8, 6, 16, 2, 0, 0, 0)
    rows = np.full((6, 8, 3), 10_000, ">u2")
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    png = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    (source / "images" / "train" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n" + png)
    return "b.png has 16 bits a channel"


def _four_channels(source, kind=None):
    path = source / "images" / "train" / "b"
    path.with_suffix(".png").unlink()
    tags = {338: kind} if kind is not None else {}  # what the further channel is
    image = Image.fromarray(np.full((6, 8, 4), 9, np.uint8))
    image.save(path.with_suffix(".tif"), tiffinfo=tags)
    return "b.tif is a TIFF of 4 channels, and images have 1 (gray) or 3 (RGB)"


def _a_channel_of_infrared(source):
    return _four_channels(source, 0)


def _masks_of_0_and_255(source):
    for path in sorted((source / "labels").rglob("*.png")):
        Image.fromarray((pixels_of(path) > 0).astype(np.uint8) * 255).save(path)
    return "no class but 0"


def _repeated_class(source):
    (source / "classes.txt").write_text("a\nb\na\nc\nd\n")
    return "line 3 of"


def _classes_in_latin_1(source):
    (source / "classes.txt").write_bytes("road\nStraße\n".encode("latin-1"))
    return "classes.txt is not UTF-8 text (line 2); save it as UTF-8"


def _classes_in_utf_16(source):
    (source / "classes.txt").write_bytes("a\nb\n".encode("utf-16"))
    return "classes.txt is not UTF-8 text (line 1)"


def _classes_in_utf_16_without_a_mark(source):
    (source / "classes.txt").write_bytes("a\nb\n".encode("utf-16-le"))
    return "classes.txt is not UTF-8 text (line 1)"


def _name_not_utf_8(source):
    for kind in ("images", "labels"):
        path = source / kind / "train" / "a.png"
        path.rename(path.with_name(os.fsdecode(b"caf\xe9.png")))
    return "caf\\udce9.png' is not UTF-8; rename it"


def _split_without_letters(source):
    for kind in ("images", "labels"):
        (source / kind / "val").rename(source / kind / "_")
    return "images/_: a split is named by letters"


@pytest.mark.parametrize(
    "breaks",
    [
        _no_images,
        _no_labels,
        _no_train,
        _no_label_split,
        _empty_split,
        _no_label,
        _no_image,
        _two_images,
        _sizes_differ,
        _value_too_high,
        _wide_value,
        _color_label,
        _truncated,
        _truncated_label,
        _not_an_image,
        _zero_bytes,
        _float_image,
        _wide_gray_png,
        _wide_gray_tiff,
        _wide_color_png,
        _four_channels,
        _a_channel_of_infrared,
        _masks_of_0_and_255,
        _repeated_class,
        _classes_in_latin_1,
        _classes_in_utf_16,
        _classes_in_utf_16_without_a_mark,
        _name_not_utf_8,
        _split_without_letters,
    ],
)
def test_a_broken_tree_is_refused_in_one_line_and_leaves_nothing(source, tmp_path, breaks):
    named = breaks(source)
    with pytest.raises(UserError) as caught:
        prepare(source, tmp_path)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()
    assert not sets.is_prepared("folder", tmp_path / "data")


def test_a_byte_order_mark_is_no_part_of_a_class(source, tmp_path):
    names = ["Straße", "b", "c", "d", "e"]
    (source / "classes.txt").write_bytes("\n".join(names).encode("utf-8-sig"))
    assert prepare(source, tmp_path).class_names == tuple(names)


def test_an_empty_path_is_refused(source, tmp_path):
    with pytest.raises(UserError, match="--source is empty"):
        sets.prepare("folder", tmp_path / "data", source="")
    for function in (sets.is_prepared, sets.open_set, sets.verify):
        with pytest.raises(UserError, match="data_dir is empty"):
            function("folder", "")


def test_a_tilde_is_the_home_folder(source, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    dataset = sets.prepare("folder", "~/data", source="~/source")
    assert dataset.directory == tmp_path / "data" / "folder" / "1.0.0"
    assert sets.open_set("folder", "~/data").splits["train"] == 3


def test_a_missing_source_is_named(tmp_path):
    with pytest.raises(UserError, match=r"there is no folder .*nowhere"):
        prepare(tmp_path / "nowhere", tmp_path)
    with pytest.raises(UserError, match="--source"):
        sets.prepare("folder", tmp_path / "data")


def test_an_interrupted_preparation_leaves_nothing(source, tmp_path, monkeypatch):
    folder = find_builder("folder")
    convert = folder._convert

    def stop_at_c(self, pair):
        if pair.name == "town/c":
            raise KeyboardInterrupt
        return convert(self, pair)

    monkeypatch.setattr(folder, "_convert", stop_at_c)
    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path)
    assert not (tmp_path / "data").exists()
    with pytest.raises(UserError, match=r"python -m kdjax prepare folder --source DIR"):
        sets.open_set("folder", tmp_path / "data")
    monkeypatch.undo()
    assert prepare(source, tmp_path).splits["train"] == 3


def test_what_a_killed_process_left_is_replaced(source, tmp_path):
    home = tmp_path / "data" / "folder"
    for leftover in (home / ".incomplete" / "folder", home / "1.0.0"):
        leftover.mkdir(parents=True)
        (leftover / "folder-train.array_record-00000-of-00001").write_text("half")
    assert not sets.is_prepared("folder", tmp_path / "data")
    assert prepare(source, tmp_path).splits["train"] == 3
    assert not (home / ".incomplete").exists()


def test_preparing_again_opens_what_is_there(source, tmp_path):
    first = prepare(source, tmp_path, ignore=[4])
    before = sorted((path, path.stat().st_mtime_ns) for path in first.directory.iterdir())
    again = prepare(source, tmp_path, ignore=[4])
    assert again.fingerprint == first.fingerprint
    assert sorted((path, path.stat().st_mtime_ns) for path in first.directory.iterdir()) == before
    assert sets.open_set("folder", tmp_path / "data").fingerprint == first.fingerprint
    with pytest.raises(UserError, match="remove it"):
        prepare(source, tmp_path)


def test_the_fingerprint_is_that_of_the_content(source, tmp_path):
    first = prepare(source, tmp_path / "1").fingerprint
    assert prepare(source, tmp_path / "2").fingerprint == first
    assert len(first) == 16
    label = pixels_of(source / "labels" / "test" / "e.png")
    label[0, 0] = 2
    Image.fromarray(label).save(source / "labels" / "test" / "e.png")
    assert prepare(source, tmp_path / "3").fingerprint != first


def test_two_that_prepare_at_once_share_the_result(source, tmp_path):
    # Threads hold separate locks of one file just as processes do.
    results, errors = [], []

    def work():
        try:
            results.append(prepare(source, tmp_path).fingerprint)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(results) == 3
    assert len(set(results)) == 1


def test_a_folder_that_cannot_be_written_is_named(source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to data_dir"):
        sets.prepare("folder", tmp_path / "file" / "data", source=source)
    with pytest.raises(UserError, match="not a local folder"):
        sets.open_set("folder", "gs://bucket/data")


def test_names_and_options_are_checked(source, tmp_path):
    with pytest.raises(UserError, match='did you mean "shapes"'):
        sets.open_set("shape", tmp_path)
    with pytest.raises(UserError, match="takes no option 'colour'; it takes: ignore"):
        prepare(source, tmp_path, colour=3)
    with pytest.raises(UserError, match="leave --source out"):
        sets.prepare("shapes", tmp_path, source=source)
    with pytest.raises(UserError, match="300 is no label value"):
        prepare(source, tmp_path, ignore=[300])
    with pytest.raises(UserError, match="no split 'training'; it has train, val, test"):
        prepare(source, tmp_path).records("training")


OWN_BUILDER = """
from kdjax.data.preparing.builder import SegmentationBuilder

class {}(SegmentationBuilder):
    class_names = ["one", "two"]
    OPTIONS = ("option",)
"""


def write_builder(root, name, content=OWN_BUILDER, class_name=None):
    path = root / name / f"{name}.py"
    path.parent.mkdir(parents=True)
    path.write_text(content.format(class_name or name.capitalize()))
    (path.parent / "classes.csv").write_text(
        "label,name,red,green,blue\n7,one,0,0,0\n9,two,9,9,9\n"
    )


def test_a_search_path_adds_data_sets(tmp_path, monkeypatch):
    first, second = tmp_path / "first", tmp_path / "second"
    write_builder(first, "mine")
    write_builder(second, "theirs")
    own = ROOT / "datasets"
    # The folder of the built-in sets may be listed too. Empty parts are ignored.
    path = os.pathsep.join([str(first), "", str(second), str(own)])
    monkeypatch.setenv("KDJAX_DATASETS", path)
    assert find_builder("mine").OPTIONS == ("option",)
    assert find_builder("theirs").name == "theirs"
    assert find_builder("shapes").name == "shapes"
    assert known_classes("theirs") == 2
    assert original_labels("mine") == [7, 9]
    with pytest.raises(UserError, match='did you mean "theirs"') as refused:
        find_builder("theirss")
    for listed in ("mine", "theirs", "voc2012"):
        assert listed in str(refused.value)
    assert "\n" not in str(refused.value)


def test_two_data_sets_of_one_name_are_not_guessed_between(tmp_path, monkeypatch):
    write_builder(tmp_path, "camvid")
    monkeypatch.setenv("KDJAX_DATASETS", str(tmp_path))
    wanted = f"{tmp_path / 'camvid'} and {ROOT / 'datasets' / 'camvid'}; rename"
    for look_up in (find_builder, known_classes, original_labels):
        with pytest.raises(UserError, match=re.escape(wanted)):
            look_up("camvid")
    assert find_builder("shapes").name == "shapes"


@pytest.mark.parametrize(
    ("content", "class_name", "wanted"),
    [
        ("import no_such_module", None, "cannot be loaded: ModuleNotFoundError: .*no_such_module"),
        ("", None, "defines no subclass of kdjax.data.preparing.builder.SegmentationBuilder"),
        (OWN_BUILDER, "Cityscapes", "class Cityscapes makes a set named 'cityscapes'"),
    ],
)
def test_an_own_builder_that_cannot_be_used_is_named(
    tmp_path, monkeypatch, content, class_name, wanted
):
    write_builder(tmp_path, "mine", content, class_name)
    monkeypatch.setenv("KDJAX_DATASETS", str(tmp_path))
    with pytest.raises(UserError, match=rf"mine\.py.* {wanted}"):
        find_builder("mine")


def test_a_search_path_that_leads_nowhere_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("KDJAX_DATASETS", str(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match=r"KDJAX_DATASETS names .*elsewhere, which is no folder"):
        sets.open_set("shapes", tmp_path)


def write_images(source, names):
    for name in names:
        write_pair(source, "", name, [[0, 1, 2]])


def names_by_split(dataset):
    return {split: set(dataset.records(split).names()) for split in dataset.splits}


NAMES = [f"{number}" for number in range(24)] + [f"town/{number}" for number in range(24)]
# Of them, those whose hash is below 0.2.
VAL = [
    "8",
    "9",
    "town/0",
    "town/1",
    "town/10",
    "town/12",
    "town/14",
    "town/15",
    "town/22",
    "town/23",
]


def test_without_shares_a_fifth_is_to_validate_on(tmp_path):
    write_images(tmp_path / "source", NAMES)
    said = []
    dataset = prepare(tmp_path / "source", tmp_path, report=said.append)
    assert {split: sorted(names) for split, names in names_by_split(dataset).items()} == {
        "train": sorted(set(NAMES) - set(VAL)),
        "val": VAL,
    }
    (line,) = said
    assert "no folders train/ and val/: 10 of its 48 images, chosen by their names" in line
    given = sets.prepare("folder", tmp_path, source=tmp_path / "source", val_share=0.2)
    assert given.fingerprint == dataset.fingerprint


def test_shares_split_by_name_and_adding_images_moves_none(tmp_path):
    write_images(tmp_path / "source", NAMES)
    write_images(tmp_path / "source", [".hidden/1"])
    shares = {"val_share": 0.2, "test_share": 0.3}
    before = prepare(tmp_path / "source", tmp_path, **shares)
    assert list(before.splits) == ["train", "val", "test"]
    found = names_by_split(before)
    assert set.union(*found.values()) == set(NAMES)
    assert sum(before.splits.values()) == len(NAMES)
    # Another hash would move images between the splits of existing sets.
    assert sorted(found["val"]) == VAL
    write_images(tmp_path / "source", [f"more/{number}" for number in range(8)])
    more = names_by_split(sets.prepare("folder", tmp_path, source=tmp_path / "source", **shares))
    assert all(found[split] == more[split] & set(NAMES) for split in found)
    # Changing the share of one split moves no image of the other.
    one = sets.prepare("folder", tmp_path / "one", source=tmp_path / "source", val_share=0.2)
    assert names_by_split(one) == {"train": more["train"] | more["test"], "val": more["val"]}


@pytest.mark.parametrize(
    ("shares", "wanted"),
    [
        ({}, "--val_share 0.2 of 2 images leave none to val; give other shares"),
        ({"val_share": -0.1}, "--val_share -0.1: a share is above 0 and below 1"),
        ({"test_share": 0.0}, "--test_share 0.0: a share is above 0"),
        ({"val_share": float("nan")}, "--val_share nan: a share"),
        ({"test_share": 1.5}, "--test_share 1.5: a share is .* below 1"),
        ({"val_share": 1.0}, "--val_share 1.0: .*; --test_share 1 alone makes a set that only"),
        ({"val_share": 0.5, "test_share": 0.5}, "--test_share 0.5 add up to 1, which leaves no"),
        ({"val_share": 1e-9}, "--val_share 1e-09 of 2 images leave none to val; give other"),
        ({"val_share": 1 - 1e-9}, "leave none to train"),
    ],
)
def test_shares_that_make_no_splits_are_refused(tmp_path, shares, wanted):
    write_images(tmp_path / "source", ["a", "town/b"])
    with pytest.raises(UserError, match=wanted):
        prepare(tmp_path / "source", tmp_path, **shares)
    assert not sets.is_prepared("folder", tmp_path / "data")


def test_a_set_may_hold_test_images_alone(tmp_path):
    write_images(tmp_path / "source", NAMES)
    prepared = sets.prepare("folder", tmp_path, source=tmp_path / "source", test_share=1.0)
    assert names_by_split(prepared) == {"test": {*NAMES}}
    config = configuration.default()
    config.data.update({"name": "folder", "data_dir": str(tmp_path)})
    with pytest.raises(UserError, match=r'train_split is "train"; folder in .* has test'):
        RunData(config.data)


@pytest.mark.parametrize("splits", [("train", "val", "test"), ("Training", "validation", "more")])
def test_splits_that_are_there_are_not_shared_out(source, tmp_path, splits):
    for kind in ("images", "labels"):
        for before, after in zip(("train", "val", "test"), splits, strict=True):
            (source / kind / before).rename(source / kind / after)
    with pytest.raises(UserError, match=r"has splits already, .*: leave --val_share 0.1 out"):
        prepare(source, tmp_path, val_share=0.1)


def test_another_share_is_another_set(tmp_path):
    write_images(tmp_path / "source", NAMES)
    prepare(tmp_path / "source", tmp_path, val_share=0.2)
    with pytest.raises(UserError, match=r"was made from .*'val_share': 0.2.*, not from .*0\.3"):
        prepare(tmp_path / "source", tmp_path, val_share=0.3)
    sets.verify("folder", tmp_path / "data", val_share=0.2)
    with pytest.raises(UserError, match=r"was made from .*0\.2.*, not with val_share 0\.3"):
        sets.verify("folder", tmp_path / "data", val_share=0.3)


def test_statistics_are_those_of_the_pixels(source, tmp_path):
    write_pair(source, "val", "d2", [[0, 1, 255, 255]])
    measured = prepared.measure_split(prepare(source, tmp_path), "val")
    label = np.concatenate([np.arange(48) % 3, [0, 1]])
    assert measured.num_examples == 2
    assert (measured.smallest, measured.largest) == ((1, 4), (6, 8))
    np.testing.assert_allclose(measured.class_shares, np.bincount(label, minlength=5) / 50)
    assert measured.ignored_share == pytest.approx(2 / 52)
    # 255 * 20 wraps around in uint8, in the images that `write_pair` made.
    colors = np.concatenate([label * 20, [255 * 20 % 256] * 2])
    np.testing.assert_allclose(measured.mean, [colors.mean()] * 3)
    np.testing.assert_allclose(measured.std, [colors.std()] * 3)


def test_datasets_is_not_a_package():
    # With an __init__.py it would hide the well-known `datasets` library.
    assert not (ROOT / "datasets" / "__init__.py").exists()
    assert not list((ROOT / "datasets").glob("*/__init__.py"))


def test_importing_the_package_imports_no_tensorflow():
    code = "import sys, kdjax.data; sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize(("own", "during"), [(None, "0"), ("1", "1")])
def test_the_environment_is_as_before_the_import_of_tensorflow(monkeypatch, own, during):
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    if own is not None:
        monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", own)
    with environment.importing_tensorflow():
        assert os.environ["TF_ENABLE_ONEDNN_OPTS"] == during
    assert os.environ.get("TF_ENABLE_ONEDNN_OPTS") == own


@pytest.mark.parametrize("content", ["", "raise OSError"])
def test_triton_is_loaded_before_tensorflow(tmp_path, monkeypatch, content):
    (tmp_path / "triton.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorflow", tempfile)  # any module
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    with environment.importing_tensorflow():
        pass
    assert "triton" not in sys.modules
    monkeypatch.delitem(sys.modules, "tensorflow")
    with environment.importing_tensorflow():
        pass
    assert ("triton" in sys.modules) == (not content)
    # Other tests must not find the stand-in.
    sys.modules.pop("triton", None)


def run_prepare(*arguments):
    return warm.run("-m", "kdjax", "prepare", *arguments)


def test_the_command_prints_a_summary(source, tmp_path):
    done = run_prepare("folder", "--source", source, "--data_dir", tmp_path, "--ignore", "3,4")
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.startswith("folder is prepared")
    assert "images" in done.stdout
    assert "class_2" in done.stdout
    receipt = json.loads((tmp_path / "folder" / "1.0.0" / "kdjax.json").read_text())
    assert receipt["made_from"]["ignore"] == [3, 4]


def test_the_command_shares_out_and_verifies_the_shares(tmp_path):
    write_images(tmp_path / "source", NAMES)
    (tmp_path / "colors.csv").write_text("name,r,g,b\nroad,0,0,0\nsky,1,1,1\n")
    given = ("folder", "--data_dir", tmp_path, "--val_share", "0.2")
    tables = ("--colors", tmp_path / "source" / ".." / "colors.csv", "--ignore", "#020202")
    source = ("--source", tmp_path / "source")
    done = run_prepare(*given, *tables, "--test_share", "0.3", *source)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^ignored pixels +33.33%", done.stdout, re.MULTILINE)
    receipt = json.loads((tmp_path / "folder" / "1.0.0" / "kdjax.json").read_text())
    assert receipt["made_from"].items() >= {"val_share": 0.2, "test_share": 0.3}.items()
    assert receipt["made_from"]["colors"] == str(tmp_path / "colors.csv")
    done = run_prepare(*given, "--test_share", "0.2", "--verify")
    assert done.returncode == 2
    assert "not with test_share 0.2" in done.stderr


def test_the_command_refuses_in_one_line(source, tmp_path):
    named = _sizes_differ(source)
    done = run_prepare("folder", "--source", source, "--data_dir", tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("kdjax prepare: error: ")
    assert named in done.stderr
    assert done.stderr.count("\n") == 1
