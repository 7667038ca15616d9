"""Wrong sources, damaged files, full disks, and outdated sets."""

import errno

import numpy as np
import pytest
from original_trees import (
    PUBLISHED,
    TREES,
    ade20k,
    camvid,
    camvid_original,
    cityscapes,
    encoded,
    label_of,
    labels,
    matlab,
    pascal_context,
    prepare,
    refuses,
    voc2012,
    write_tar,
    write_tree,
    write_zip,
)

from kdjax.data import sets
from kdjax.data.preparing import conversion, prepared
from kdjax.data.preparing import prepare as preparation
from kdjax.data.preparing.builder import find_builder
from kdjax.utils.errors import UserError


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_wrong_folder_is_told_what_it_should_be(name, tmp_path):
    source = write_tree(tmp_path / "source", {"readme.txt": b""})
    words = find_builder(name).SOURCE.split(" ")
    refuses(
        name, source, tmp_path, f"source holds no folder .* --source names {words[0]} {words[1]}"
    )
    refuses(name, tmp_path / "nowhere", tmp_path, "no folder or archive .*nowhere; --source names")


def test_an_archive_of_another_set_is_told_what_it_should_be(tmp_path):
    source = write_zip(tmp_path / "voc.zip", voc2012())
    refuses("ade20k", source, tmp_path, r"voc\.zip holds no folder .* --source names")


def test_two_copies_are_not_guessed_between(tmp_path):
    files = {f"{copy}/{path}": data for copy in "ab" for path, data in ade20k().items()}
    source = write_tree(tmp_path / "source", files)
    refuses("ade20k", source, tmp_path, "several folders .*a/ADE.*images/training and .*b/ADE")


def test_a_split_file_that_names_a_missing_image(tmp_path):
    files = voc2012()
    del files["VOCdevkit/VOC2012/JPEGImages/2008_000002.jpg"]
    source = write_tree(tmp_path / "1", files)
    refuses("voc2012", source, tmp_path, r"2008_000002\.jpg, which .*/val\.txt names, is not in")
    files = pascal_context()
    del files["trainval/2008_000015.mat"]
    source = write_tree(tmp_path / "2", files)
    refuses(
        "pascal_context", source, tmp_path, r"label 2008_000015\.mat, which .*/train\.txt names"
    )
    del files["VOCdevkit/VOC2010/ImageSets/Main/train.txt"]
    source = write_tree(tmp_path / "3", files)
    refuses("pascal_context", source, tmp_path, r"there is no train\.txt in .*ImageSets/Main")


def test_a_list_in_another_encoding_and_one_with_a_mark(tmp_path):
    files = voc2012()
    path = "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"
    marked = {**files, path: b"\xef\xbb\xbf" + files[path]}
    dataset = prepare("voc2012", write_tree(tmp_path / "1", marked), tmp_path)
    assert dataset.splits["val"] == 2
    utf_16 = {**files, path: files[path].decode().encode("utf-16")}
    source = write_tree(tmp_path / "2", utf_16)
    refuses("voc2012", source, tmp_path / "b", r"val\.txt is not UTF-8 text \(line 1\)")


def test_a_member_whose_name_is_not_utf_8(tmp_path):
    files = {**camvid(), "CamVid/train/caf\udce9.png": b"", "CamVid/trainannot/caf\udce9.png": b""}
    source = write_tar(tmp_path / "camvid.tar", files)
    refuses("camvid", source, tmp_path, r"caf\\udce9\.png' is not UTF-8; rename it")


def test_an_image_without_a_label_and_the_reverse(tmp_path):
    files = cityscapes()
    del files["gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png"]
    source = write_tree(tmp_path / "1", files)
    refuses("cityscapes", source, tmp_path, r"aachen_000000_000019_leftImg8bit\.png has no label")
    files = ade20k()
    del files["ADEChallengeData2016/images/validation/ADE_val_00000001.jpg"]
    files["ADEChallengeData2016/images/validation/other.jpg"] = b""
    source = write_zip(tmp_path / "2.zip", files)
    refuses("ade20k", source, tmp_path, r"2\.zip/.*/ADE_val_00000001\.png has no image")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cityscapes", 34),
        ("voc2012", 21),
        ("ade20k", 151),
        ("ade20k", 152),
        ("coco_stuff", 11),
        ("camvid", 12),
    ],
)
def test_a_value_that_is_no_label_is_named_with_its_file(name, value, tmp_path):
    source = write_tree(tmp_path / "source", TREES[name]([0, value, 1]))
    refuses(name, source, tmp_path, rf"\.png holds the value {value}; allowed are ")


def test_a_value_outside_the_mapping_of_matlab_labels_and_colors(tmp_path):
    for value in (460, 500):
        source = write_tree(tmp_path / f"{value}", pascal_context([0, value, 70]))
        message = rf"\.mat holds the value {value}; allowed are 0\.\.459"
        refuses("pascal_context", source, tmp_path, message)
    source = write_tree(tmp_path / "2", camvid_original([[64, 128, 64], [1, 2, 3]]))
    message = r"_L\.png holds the color #010203 \(4 pixels\); the nearest is #000000 \(ignored\), "
    refuses("camvid", source, tmp_path, f"{message}allowed are the colors of datasets/camvid/")


def test_a_label_of_another_size(tmp_path):
    files = ade20k()
    files["ADEChallengeData2016/annotations/training/ADE_train_00000002.png"] = encoded(
        label_of(range(9))
    )
    source = write_zip(tmp_path / "ade.zip", files)
    refuses("ade20k", source, tmp_path, r"ADE_train_00000002\.png is 9 x 4 pixels, but .*151 x 4")


def test_a_matlab_file_of_another_kind(tmp_path):
    files = voc2012()
    path = "benchmark_RELEASE/dataset/cls/2008_000008.mat"
    files[path] = matlab(GTinst={"Segmentation": label_of([1])})
    source = write_tree(tmp_path / "1", files)
    refuses("voc2012", source, tmp_path, r"8\.mat holds no matrix GTcls\.Segmentation")
    files[path] = files[path][:150]
    source = write_tree(tmp_path / "2", files)
    refuses("voc2012", source, tmp_path, r"8\.mat cannot be read as a MATLAB file")


def test_a_damaged_archive(tmp_path):
    whole = write_zip(tmp_path / "whole.zip", ade20k()).read_bytes()
    cut = tmp_path / "cut.zip"
    cut.write_bytes(whole[:-100])
    refuses("ade20k", cut, tmp_path, r"cut\.zip is damaged or incomplete .*; get it again")
    for suffix in (".tar", ".tar.gz"):
        path = write_tar(tmp_path / f"voc{suffix}", voc2012())
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 77])
        refuses("voc2012", path, tmp_path, rf"voc{suffix} is damaged or incomplete")


def damage(path, data):
    """Overwrites the first occurrence of `data` in an archive."""
    content = path.read_bytes()
    assert data in content
    path.write_bytes(content.replace(data, bytes(len(data)), 1))


def test_a_damaged_image_is_named_or_left_out(tmp_path):
    files = ade20k()
    name = "ADEChallengeData2016/images/training/ADE_train_00000001.jpg"
    files[name] = files[name][:-200]
    source = write_zip(tmp_path / "ade.zip", files)
    label = "ADEChallengeData2016/annotations/validation/ADE_val_00000001.png"
    message = rf"{name} cannot be read as an image: .*; --skip-damaged leaves such"
    refuses("ade20k", source, tmp_path, message)
    dataset = prepare("ade20k", source, tmp_path, skip_damaged=True)
    assert list(labels(dataset, "train")) == ["ADE_train_00000002"]
    assert dataset.splits == {"train": 1, "val": 1}
    (line,) = dataset.skipped
    assert name in line
    assert sets.open_set("ade20k", tmp_path / "data").skipped == dataset.skipped
    # A split must not end up empty.
    files[label] = files[label][:45]
    refused = write_zip(tmp_path / "other.zip", files)
    with pytest.raises(UserError, match=r"no image of split val can be read: .*ADE_val_00000001"):
        prepare("ade20k", refused, tmp_path / "2", skip_damaged=True)


def test_a_damaged_image_of_two_splits_is_listed_once(tmp_path):
    files = voc2012()
    files["VOCdevkit/VOC2012/JPEGImages/2007_000032.jpg"] = b""
    source = write_tree(tmp_path / "source", files)
    dataset = prepare("voc2012", source, tmp_path, skip_damaged=True)
    assert dataset.splits == {"train": 1, "train_aug": 3, "val": 2}
    assert len(dataset.skipped) == 1


def test_a_damaged_member_of_an_archive_is_named(tmp_path):
    files = ade20k()
    source = write_zip(tmp_path / "ade.zip", files)
    damage(source, files["ADEChallengeData2016/images/training/ADE_train_00000002.jpg"][-40:])
    refuses("ade20k", source, tmp_path, r"ade\.zip is damaged or incomplete .*CRC.*get it again")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("write() failed: No space left on device; writing x.array_record; at byte 0"),
    ],
)
def test_a_full_disk_leaves_nothing(error, tmp_path, monkeypatch):
    source = write_tree(tmp_path / "source", ade20k())

    def fail(records):
        raise error

    monkeypatch.setattr(preparation, "fingerprint", fail)
    refuses("ade20k", source, tmp_path, "no space left for .*ade20k.*--data_dir")
    monkeypatch.undo()
    assert prepare("ade20k", source, tmp_path).splits == {"train": 2, "val": 1}


def test_a_full_disk_while_records_are_written(tmp_path, monkeypatch):
    def fail(self, pair):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(find_builder("ade20k"), "_convert", fail)
    source = write_tree(tmp_path / "source", ade20k())
    refuses("ade20k", source, tmp_path, "no space left for .*ade20k.*--data_dir")


def test_no_space_to_unpack_an_archive(tmp_path, monkeypatch):
    def fail(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    source = write_tar(tmp_path / "voc.tar.gz", voc2012())
    monkeypatch.setattr("shutil.unpack_archive", fail)
    refuses("voc2012", source, tmp_path, "no space left for .*--data_dir")


def test_an_unknown_number_of_classes(tmp_path):
    source = write_tree(tmp_path / "source", pascal_context())
    refuses("pascal_context", source, tmp_path, "59 or 60 classes, not 33", classes=33)


def test_a_set_of_another_version_is_named(tmp_path):
    dataset = prepare("camvid", write_tree(tmp_path / "source", camvid()), tmp_path)
    dataset.directory.rename(dataset.directory.with_name("0.9.0"))
    for opened in (sets.open_set, sets.verify):
        with pytest.raises(UserError, match=r"is of version 0\.9\.0, and this kdjax reads 1\.0\.0"):
            opened("camvid", tmp_path / "data")
    assert prepare("camvid", tmp_path / "source", tmp_path).directory.name == "1.0.0"


def test_a_set_is_verified_by_its_content(tmp_path):
    with pytest.raises(UserError, match=r"camvid has not been prepared .*--source DIR"):
        sets.verify("camvid", tmp_path / "data")
    dataset = prepare("camvid", write_tree(tmp_path / "source", camvid()), tmp_path)
    assert sets.verify("camvid", tmp_path / "data").fingerprint == dataset.fingerprint
    receipt = dataset.directory / "kdjax.json"
    changed = receipt.read_text().replace(dataset.fingerprint, "0" * 16)
    receipt.write_text(changed)
    with pytest.raises(UserError, match=r"have changed: .* was 0000000000000000; remove"):
        sets.verify("camvid", tmp_path / "data")
    (records,) = dataset.directory.glob("camvid-val.*")
    content = bytearray(records.read_bytes())
    records.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"1\.0\.0 is damaged .*; remove"):
        sets.verify("camvid", tmp_path / "data")


def test_a_label_that_is_no_class_is_noticed_in_a_prepared_set(tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "encode_png", lambda pixels: encoded(pixels + np.uint8(100)))
    dataset = prepare("camvid", write_tree(tmp_path / "source", camvid()), tmp_path)
    with pytest.raises(UserError, match=r"split val .*has labels of value 99, .*only 11 classes"):
        prepared.measure_split(dataset, "val")
