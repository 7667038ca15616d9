"""The published sets: every label value, from made-up trees of the original form."""

import numpy as np
import pytest
from original_trees import (
    PUBLISHED,
    TREES,
    ade20k,
    assert_labels,
    camvid,
    camvid_original,
    cityscapes,
    coco_stuff,
    committed,
    encoded,
    image_like,
    jpeg,
    label_of,
    labels,
    part,
    pascal_context,
    prepare,
    published,
    rows_of,
    voc2012,
    write_tree,
    write_zip,
)

from kdjax.data.loading import pipeline
from kdjax.data.preparing import prepared


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_tree_of_the_original_form_is_converted(name, tmp_path):
    dataset = prepare(name, write_tree(tmp_path / "source", TREES[name]()), tmp_path)
    assert dataset.name == name
    _, names, palette = committed(name)
    if name == "pascal_context":
        names, palette = names[1:], palette[1:]
    assert list(dataset.class_names) == names
    assert dataset.palette.tolist() == palette
    for split in dataset.splits:
        # Raises an error if a label holds an unknown value.
        assert prepared.measure_split(dataset, split).num_examples == dataset.splits[split]


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds"])
def test_cityscapes_by_either_kind_of_ids(kind, tmp_path):
    # 255 is the license plate's -1 in eight bits.
    values = (*range(34), 255) if kind == "labelIds" else (*range(19), 255)
    ids = committed("cityscapes")[0] if kind == "labelIds" else {i: i for i in range(19)}
    source = write_tree(tmp_path / "source", cityscapes(values, kind))
    dataset = prepare("cityscapes", source, tmp_path)
    assert dataset.splits == {"train": 2, "val": 1}
    assert list(labels(dataset, "train")) == [
        "aachen/aachen_000000_000019",
        "bochum/bochum_000000_000313",
    ]
    assert_labels(dataset, values, ids)
    by_name = dict(zip(dataset.class_names, range(19), strict=True))
    assert (by_name["road"], by_name["bicycle"]) == (0, 18)
    if kind == "labelIds":
        label = labels(dataset, "val")["frankfurt/frankfurt_000000_000294"]
        assert (label[0, 7], label[0, 33], label[0, 29], label[0, 0]) == (0, 18, 255, 255)


def test_cityscapes_prefers_the_original_ids(tmp_path):
    files = cityscapes() | cityscapes((*range(19), 255) * 1, "labelTrainIds")
    files = {**files, **part(cityscapes(), "leftImg8bit")}
    dataset = prepare("cityscapes", write_tree(tmp_path / "source", files), tmp_path)
    assert_labels(dataset, (*range(34), 255), committed("cityscapes")[0])


def test_voc_with_the_labels_of_sbd(tmp_path):
    dataset = prepare("voc2012", write_tree(tmp_path / "source", voc2012()), tmp_path)
    assert dataset.splits == {"train": 2, "train_aug": 4, "val": 2}
    own, added = label_of((*range(21), 255)), np.roll(label_of(range(21)), 1, axis=1)
    assert list(labels(dataset, "val")) == ["2007_000033", "2008_000002"]
    for split in ("train", "val"):
        for label in labels(dataset, split).values():
            np.testing.assert_array_equal(label, own)
    found = labels(dataset, "train_aug")
    assert list(found) == ["2007_000032", "2007_000039", "2008_000008", "2010_000001"]
    for name, label in found.items():
        np.testing.assert_array_equal(label, own if name.startswith("2007") else added)


def test_voc_without_more_labels_has_no_train_aug(tmp_path):
    files = {path: data for path, data in voc2012().items() if "cls" not in path}
    lines = []
    dataset = prepare("voc2012", write_tree(tmp_path / "s", files), tmp_path, report=lines.append)
    assert dataset.splits == {"train": 2, "val": 2}
    assert lines[1] == "train_aug: 0 images, but 10,582 are published"


def test_voc_with_sbd_as_pngs(tmp_path):
    files = {path: data for path, data in voc2012().items() if "cls" not in path}
    for name in ("2007_000032", "2008_000008", "2007_000033"):
        path = f"VOCdevkit/VOC2012/SegmentationClassAug/{name}.png"
        files[path] = encoded(label_of(range(21)))
    dataset = prepare("voc2012", write_tree(tmp_path / "source", files), tmp_path)
    assert list(labels(dataset, "train_aug")) == ["2007_000032", "2007_000039", "2008_000008"]


def test_ade20k_ignores_0_and_counts_from_1(tmp_path):
    source = write_zip(tmp_path / "ADEChallengeData2016.zip", ade20k())
    dataset = prepare("ade20k", source, tmp_path)
    assert dataset.splits == {"train": 2, "val": 1}
    assert_labels(dataset, range(151), {value: value - 1 for value in range(1, 151)})


@pytest.mark.parametrize("classes", [59, 60])
@pytest.mark.parametrize("form", ["mat", "png"])
def test_pascal_context_of_either_form_and_count(form, classes, tmp_path):
    values = range(460) if form == "mat" else range(60)
    lines = committed("pascal_context")[0] if form == "mat" else {i: i for i in range(60)}
    source = write_tree(tmp_path / "source", pascal_context(values, form))
    dataset = prepare("pascal_context", source, tmp_path, classes=classes)
    assert dataset.splits == {"train": 2, "val": 1}
    assert dataset.num_classes == classes
    assert dataset.class_names[-1] == "wood"
    ids = {value: lines.get(value, 0) - (60 - classes) for value in values}
    assert_labels(dataset, values, {value: i for value, i in ids.items() if i >= 0})
    (label,) = labels(dataset, "val").values()
    # An airplane, and a pixel of no class.
    assert label[0, 2 if form == "mat" else 1] == classes - 59
    assert label[0, 0] == (0 if classes == 60 else 255)


def test_coco_stuff_from_its_archives_with_images_of_all_kinds(tmp_path):
    files = coco_stuff()
    values = [*committed("coco_stuff")[0], 255]
    assert len(values) == 172
    assert not set(values) & {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}
    files["images/train2017/000000000009.jpg"] = jpeg(label_of(values), "L")
    files["images/train2017/000000000025.jpg"] = jpeg(label_of(values), "CMYK")
    source = tmp_path / "downloads"
    for split in ("train", "val"):
        images = part(files, f"images/{split}2017")
        images = {path.removeprefix("images/"): data for path, data in images.items()}
        write_zip(source / f"{split}2017.zip", images)
    maps = {path.removeprefix("annotations/"): data for path, data in part(files, "ann").items()}
    maps = {path: data for path, data in maps.items() if "TrainIds" not in path}
    write_zip(source / "stuffthingmaps_trainval2017.zip", maps)
    dataset = prepare("coco_stuff", source, tmp_path)
    assert dataset.splits == {"train": 2, "val": 1}
    assert_labels(dataset, values, committed("coco_stuff")[0])
    gray, cmyk = (e["image"] for e in pipeline.load_examples(dataset, "train", range(2)))
    assert (gray == gray[..., :1]).all()
    plain = image_like(label_of(values)).astype(int)
    assert np.abs(cmyk.astype(int) - plain)[:, 8:80].mean() < 12


def test_camvid_of_segnet(tmp_path):
    dataset = prepare("camvid", write_tree(tmp_path / "s", camvid()) / "CamVid", tmp_path)
    assert dataset.splits == {"train": 2, "val": 1, "test": 1}
    assert_labels(dataset, range(12), {i: i for i in range(11)})


def test_camvid_of_32_colors_in_its_archives(tmp_path):
    rows = rows_of("camvid", "colors")
    assert len(rows) == 32
    files = camvid_original([row[2:] for row in rows])
    source = tmp_path / "source"
    write_zip(source / "701_StillsRaw_full.zip", part(files, "701"))
    # This archive has no folder inside.
    flat = {path.partition("/")[2]: data for path, data in part(files, "Lab").items()}
    write_zip(source / "LabeledApproved_full.zip", flat)
    dataset = prepare("camvid", source, tmp_path)
    assert dataset.splits == published("camvid")
    (example,) = pipeline.load_examples(dataset, "test", [5])
    names = [*dataset.class_names, *["ignored"] * 245]
    grouped = {row[0]: names[value] for row, value in zip(rows, example["label"][0], strict=True)}
    assert {original for original, name in grouped.items() if name == "Building"} == {
        *("Building", "Wall", "Bridge", "Tunnel", "Archway")
    }
    assert {original for original, name in grouped.items() if name == "Pavement"} == {
        *("Sidewalk", "ParkingBlock", "RoadShoulder")
    }
    assert {original for original, name in grouped.items() if name == "ignored"} == {"Void"}
    # A class that keeps its name keeps its color.
    for number, name in enumerate(dataset.class_names):
        assert grouped.get(name, name) == name
        if name not in ("Pole", "Pavement"):
            colors = {row[0]: row[2:] for row in rows}
            assert dataset.palette[number].tolist() == [int(value) for value in colors[name]]
