"""The published sets: each from a made-up tree of the original form, every label value, bad input.

Nothing here was ever downloaded. The trees have the names and encodings of the real ones, and a few
pixels an image.
"""

import errno
import io
import json
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile

import numpy as np
import pytest
import scipy.io
from PIL import Image

from kdjax.data import conversion, pipeline, sets, statistics
from kdjax.data.tree import Tree
from kdjax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]
TABLES = ROOT.parent / "shared" / "tables"
needs_tables = pytest.mark.skipif(
    not TABLES.is_dir(), reason="the tables of ../shared are not beside the project"
)
PUBLISHED = ("cityscapes", "voc2012", "ade20k", "pascal_context", "coco_stuff", "camvid")


def rows_of(name, table="classes"):
    """The lines of a committed table, split at their commas."""
    lines = (ROOT / "datasets" / name / f"{table}.csv").read_text().splitlines()
    return [line.split(",") for line in lines if not line.startswith("#")][1:]


def committed(name):
    """Class id by label value, names and colours, by the committed table."""
    rows = rows_of(name)
    ids = {int(row[0]): number for number, row in enumerate(rows)}
    return ids, [row[1] for row in rows], [[int(value) for value in row[2:]] for row in rows]


def shared(table):
    return json.loads((TABLES / f"{table}.json").read_text())


# Files of the original form, by path.


def label_of(values):
    """A label of four rows that holds each of `values`."""
    return np.tile(np.array(values, np.uint8), (4, 1))


def image_like(label):
    height, width = np.shape(label)[:2]
    image = np.zeros((height, width, 3), np.uint8)
    image[...] = np.arange(width)[:, None] * [1, 2, 3] % 256
    return image


def encoded(pixels, kind="png", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def palette_png(label):
    """As VOC's: indices with the colours of a palette of 256."""
    image = Image.fromarray(label)
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def matlab(**variables):
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, variables)
    return buffer.getvalue()


def jpeg(label, mode="RGB"):
    image = Image.fromarray(image_like(label)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=95)
    return buffer.getvalue()


def cityscapes(values=(*range(34), 255), kind="labelIds"):
    label, files = label_of(values), {}
    for split, frames in (
        ("train", ["aachen/aachen_000000_000019", "bochum/bochum_000000_000313"]),
        ("val", ["frankfurt/frankfurt_000000_000294"]),
        ("test", ["berlin/berlin_000000_000019"]),
    ):
        for frame in frames:
            stem = f"gtFine/{split}/{frame}_gtFine"
            files[f"leftImg8bit/{split}/{frame}_leftImg8bit.png"] = encoded(image_like(label))
            files[f"{stem}_{kind}.png"] = encoded(label)
            files[f"{stem}_instanceIds.png"] = encoded(label.astype(np.uint16) * 1000)
            files[f"{stem}_color.png"] = encoded(image_like(label))
            files[f"{stem}_polygons.json"] = b"{}"
    return files


def voc2012(values=(*range(21), 255)):
    label = label_of(values)
    root, sbd = "VOCdevkit/VOC2012", "benchmark_RELEASE/dataset"
    lists = {"train": ["2007_000032", "2007_000039"], "val": ["2007_000033", "2008_000002"]}
    files = {
        f"{root}/ImageSets/Segmentation/{split}.txt": "\n".join([*names, ""]).encode()
        for split, names in lists.items()
    }
    for name in (*lists["train"], *lists["val"]):
        files[f"{root}/SegmentationClass/{name}.png"] = palette_png(label)
    # SBD labels images of VOC's train and val too; its own are the last two.
    for name in ("2007_000039", "2008_000002", "2008_000008", "2010_000001"):
        aug = np.roll(label_of(range(21)), 1, axis=1)
        structure = {"Segmentation": aug, "Boundaries": np.zeros((20, 1)), "CategoriesPresent": 7}
        files[f"{sbd}/cls/{name}.mat"] = matlab(GTcls=structure)
    for name in (*lists["train"], *lists["val"], "2007_000027"):
        files[f"{root}/JPEGImages/{name}.jpg"] = jpeg(label)
    for name in ("2008_000008", "2010_000001"):
        files[f"{root}/JPEGImages/{name}.jpg"] = jpeg(label_of(range(21)))
    return files


def ade20k(values=range(151)):
    label, files = label_of(values), {}
    for folder, split, count in (("training", "train", 2), ("validation", "val", 1)):
        for number in range(1, count + 1):
            stem = f"{folder}/ADE_{split}_{number:08d}"
            files[f"ADEChallengeData2016/images/{stem}.jpg"] = jpeg(label)
            files[f"ADEChallengeData2016/annotations/{stem}.png"] = encoded(label)
    files["ADEChallengeData2016/objectInfo150.txt"] = b"Idx"
    return files


def pascal_context(values=range(460), form="mat"):
    label = np.tile(np.array(values, np.uint16), (4, 1))
    root = "VOCdevkit/VOC2010"
    lists = f"{root}/ImageSets/" + ("Main" if form == "mat" else "SegmentationContext")
    files = {f"{root}/JPEGImages/2007_000027.jpg": jpeg(label)}
    for split, names in (("train", ["2008_000008", "2008_000015"]), ("val", ["2008_000002"])):
        files[f"{lists}/{split}.txt"] = "\n".join(names).encode()
        for name in names:
            files[f"{root}/JPEGImages/{name}.jpg"] = jpeg(label)
            if form == "mat":
                files[f"trainval/{name}.mat"] = matlab(LabelMap=label)
            else:
                files[f"{root}/SegmentationClassContext/{name}.png"] = encoded(
                    label.astype(np.uint8)
                )
    return files


def coco_stuff(values=None):
    label = label_of([*committed("coco_stuff")[0], 255] if values is None else values)
    files = {}
    for split, names in (("train", ["000000000009", "000000000025"]), ("val", ["000000000139"])):
        for name in names:
            files[f"images/{split}2017/{name}.jpg"] = jpeg(label)
            files[f"annotations/{split}2017/{name}.png"] = encoded(label)
            files[f"annotations/{split}2017/{name}_labelTrainIds.png"] = encoded(label)
    return files


def camvid(values=range(12)):
    label, files = label_of(values), {}
    for split, names in (("train", ["0001TP_006690", "0016E5_08640"]), ("val", ["0016E5_07959"])):
        for name in names:
            files[f"CamVid/{split}/{name}.png"] = encoded(image_like(label))
            files[f"CamVid/{split}annot/{name}.png"] = encoded(label)
    files["CamVid/test/Seq05VD_f00000.png"] = encoded(image_like(label))
    files["CamVid/testannot/Seq05VD_f00000.png"] = encoded(label)
    files["CamVid/train.txt"] = b"/SegNet/CamVid/train/0001TP_006690.png"
    return files


def camvid_original(colors):
    """All frames, since their names are known; one picture for all, as that is faster."""
    label = np.tile(np.array(colors, np.uint8), (4, 1, 1))
    image_bytes, label_bytes = encoded(image_like(label)), encoded(label)
    files = {}
    for split in ("train", "val", "test"):
        for name in (ROOT / "datasets" / "camvid" / f"{split}.txt").read_text().split():
            files[f"701_StillsRaw_full/{name}.png"] = image_bytes
            files[f"LabeledApproved_full/{name}_L.png"] = label_bytes
    return files


TREES = {
    "cityscapes": cityscapes,
    "voc2012": voc2012,
    "ade20k": ade20k,
    "pascal_context": pascal_context,
    "coco_stuff": coco_stuff,
    "camvid": camvid,
}


# On a disk.


def write_tree(root, files):
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def write_zip(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_tar(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def part(files, *starts):
    return {path: data for path, data in files.items() if path.startswith(starts)}


def prepare(name, source, tmp_path, **options):
    return sets.prepare(name, tmp_path / "data", source=source, **options)


def labels(dataset, split):
    examples = pipeline.load_examples(dataset, split, range(dataset.splits[split]))
    for example in examples:
        assert example["image"].shape == (*example["label"].shape, 3)
    return {example["name"]: example["label"] for example in examples}


def expected(values, ids):
    """The label of four rows that `values` become."""
    return np.tile(np.array([ids.get(int(v), 255) for v in values], np.uint8), (4, 1))


def assert_labels(dataset, values, ids):
    for split in dataset.splits:
        for label in labels(dataset, split).values():
            np.testing.assert_array_equal(label, expected(values, ids))


# Tables.


@needs_tables
def test_classes_are_those_of_the_shared_tables():
    tables = {
        "cityscapes": "cityscapes_mmseg",
        "voc2012": "voc2012",
        "ade20k": "ade20k_mmseg",
        "pascal_context": "pascal_context60",
        "coco_stuff": "coco_stuff171",
    }
    for name, table in tables.items():
        # One of ADE20K's names ends in a blank there.
        assert committed(name)[1] == [text.strip() for text in shared(table)["classes"]]
        assert committed(name)[2] == shared(table)["palette"]
    _, names, palette = committed("camvid")
    assert names == shared("camvid11")["classes"][:11]
    assert palette == shared("camvid11")["palette"][:11]
    assert names == [
        name.partition("(")[0] for name in list(shared("camvid_stats")["train"]["freq"])[:11]
    ]


@needs_tables
def test_label_values_are_those_of_the_shared_tables():
    rows = shared("cityscapes_labels")["labels"]
    assert committed("cityscapes")[0] == {
        row["id"]: row["trainId"] for row in rows if 0 <= row["trainId"] < 255
    }
    assert {row["id"] for row in rows} == {-1, *range(34)}
    ids = committed("coco_stuff")[0]
    assert {str(value): number for value, number in ids.items()} | {"255": 255} == shared(
        "cocostuff164k_id_to_trainId"
    )["map"]
    names = shared("cocostuff_labels182")["labels"]
    assert [names[str(value + 1)] for value in ids] == committed("coco_stuff")[1]
    infos = shared("ade20k_objectInfo150")["rows"]
    assert committed("ade20k")[0] == {int(row["Idx"]): int(row["Idx"]) - 1 for row in infos}


@needs_tables
def test_pascal_context_of_59_classes_leaves_background_out():
    assert committed("pascal_context")[1][1:] == shared("pascal_context59")["classes"]
    assert committed("pascal_context")[2][1:] == shared("pascal_context59")["palette"]
    # The 459 labels are in the order of the alphabet, so that their classes are too.
    values = list(committed("pascal_context")[0])
    assert values == sorted(values)
    assert len(values) == 60


@needs_tables
def test_splits_of_cityscapes_are_those_of_the_shared_lists(tmp_path):
    files = {}
    for split in ("train", "val"):
        for image in shared(f"cityscapes_{split}_list")["images"]:
            label = image.replace("leftImg8bit/", "gtFine/", 1)
            files[image] = b""
            files[label.replace("_leftImg8bit.png", "_gtFine_labelIds.png")] = b""
    pairs = found_in("cityscapes", write_zip(tmp_path / "all.zip", files))
    for split in ("train", "val"):
        images = sorted(shared(f"cityscapes_{split}_list")["images"])
        names = [image.partition(f"/{split}/")[2] for image in images]
        assert [f"{pair.name}_leftImg8bit.png" for pair in pairs[split]] == names
    assert {split: len(pairs[split]) for split in pairs} == published("cityscapes")


@needs_tables
def test_train_aug_of_voc_is_the_shared_list(tmp_path):
    aug, val = shared("voc_train_aug_ids")["ids"], shared("voc_val_ids")["ids"]
    # Which of them VOC itself labels does not matter to the union.
    train = sorted(aug)[: published("voc2012")["train"]]
    root = "VOCdevkit/VOC2012"
    files = {f"{root}/JPEGImages/{name}.jpg": b"" for name in (*aug, *val)}
    files |= {f"{root}/SegmentationClass/{name}.png": b"" for name in (*train, *val)}
    files |= {f"dataset/cls/{name}.mat": b"" for name in (*aug[500:], *val[::2])}
    for split, names in (("train", train), ("val", val)):
        files[f"{root}/ImageSets/Segmentation/{split}.txt"] = "\n".join(names).encode()
    pairs = found_in("voc2012", write_zip(tmp_path / "voc.zip", files))
    assert [pair.name for pair in pairs["train_aug"]] == sorted(aug)
    assert [pair.name for pair in pairs["val"]] == val
    assert {split: len(pairs[split]) for split in pairs} == published("voc2012")


def found_in(name, source):
    builder = sets._builder_class(name)
    return builder.pairs_in(builder, Tree(source, builder.SOURCE))


def published(name):
    return sets._builder_class(name).PUBLISHED


def test_frames_of_camvid_are_split_by_sequence():
    lists = {
        split: (ROOT / "datasets" / "camvid" / f"{split}.txt").read_text().split()
        for split in ("train", "val", "test")
    }
    assert {split: len(names) for split, names in lists.items()} == published("camvid")
    assert len(set().union(*lists.values())) == 701
    assert {name.partition("_")[0] for name in lists["val"]} == {"0016E5"}
    assert sum(name.startswith("Seq05VD") for name in lists["test"]) == 171


# Whole sets.


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
        # Raises where a label holds what is no class.
        assert statistics.measure(dataset, split).num_examples == dataset.splits[split]


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds"])
def test_cityscapes_by_either_kind_of_ids(kind, tmp_path):
    # 255 is the licence plate's -1 in eight bits.
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
    # Aeroplane, and what is no class.
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
    grey, cmyk = (e["image"] for e in pipeline.load_examples(dataset, "train", range(2)))
    assert (grey == grey[..., :1]).all()
    plain = image_like(label_of(values)).astype(int)
    assert np.abs(cmyk.astype(int) - plain)[:, 8:80].mean() < 12


def test_camvid_of_segnet(tmp_path):
    dataset = prepare("camvid", write_tree(tmp_path / "s", camvid()) / "CamVid", tmp_path)
    assert dataset.splits == {"train": 2, "val": 1, "test": 1}
    assert_labels(dataset, range(12), {i: i for i in range(11)})


def test_camvid_of_32_colours_in_its_archives(tmp_path):
    rows = rows_of("camvid", "colors")
    assert len(rows) == 32
    files = camvid_original([row[2:] for row in rows])
    source = tmp_path / "source"
    write_zip(source / "701_StillsRaw_full.zip", part(files, "701"))
    # This archive has no folder within.
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
    # Where a class has kept its name it has kept its colour.
    for number, name in enumerate(dataset.class_names):
        assert grouped.get(name, name) == name
        if name not in ("Pole", "Pavement"):
            colors = {row[0]: row[2:] for row in rows}
            assert dataset.palette[number].tolist() == [int(value) for value in colors[name]]


def test_camvid_is_split_as_the_shared_copy():
    images = ROOT.parent / "shared" / "data" / "camvid_360x480" / "images"
    if not images.is_dir():
        pytest.skip("CamVid is not in ../shared/data")
    for split in ("train", "val", "test"):
        names = (ROOT / "datasets" / "camvid" / f"{split}.txt").read_text().split()
        assert sorted(path.stem for path in (images / split).iterdir()) == names


# Trees and archives.


def test_archives_and_folders_give_the_same_records(tmp_path):
    files = voc2012()
    prints = [prepare("voc2012", write_tree(tmp_path / "a", files), tmp_path / "1").fingerprint]
    # Another year's set is no substitute.
    other = {path.replace("VOC2012", "VOC2007"): data for path, data in part(files, "VOC").items()}
    write_tree(tmp_path / "b", other)
    write_tar(tmp_path / "b" / "VOCtrainval_11-May-2012.tar", part(files, "VOC"))
    write_tar(tmp_path / "b" / "benchmark.tgz", part(files, "bench"))
    prints.append(prepare("voc2012", tmp_path / "b", tmp_path / "2").fingerprint)
    # Some unpacked, some not; what is unpacked counts.
    write_tree(tmp_path / "c", part(files, "VOC"))
    write_tar(tmp_path / "c" / "SBD.tar.gz", part(files, "bench"))
    write_zip(tmp_path / "c" / "VOCtrainval.zip", {"VOC2012/JPEGImages/none.jpg": b""})
    prints.append(prepare("voc2012", tmp_path / "c", tmp_path / "3").fingerprint)
    assert len(set(prints)) == 1


def test_what_macos_adds_to_archives_is_passed_over(tmp_path):
    files = ade20k()
    junk = {f"__MACOSX/{path.replace('ADE_', '._ADE_')}": b"junk" for path in files}
    hidden = {path.replace("ADE_", "._ADE_"): b"junk" for path in files}
    source = write_zip(tmp_path / "ade.zip", {**files, **junk, **hidden})
    assert prepare("ade20k", source, tmp_path).splits == {"train": 2, "val": 1}


def test_folders_may_be_links(tmp_path):
    files = write_tree(tmp_path / "elsewhere", ade20k())
    source = tmp_path / "source"
    source.mkdir()
    (source / "ADEChallengeData2016").symlink_to(files / "ADEChallengeData2016")
    (files / "ADEChallengeData2016" / "again").symlink_to(source)
    assert prepare("ade20k", source, tmp_path).splits == {"train": 2, "val": 1}


def test_published_counts_are_reported_before_anything_is_converted(tmp_path, monkeypatch):
    builder, lines = sets._builder_class("cityscapes"), []
    monkeypatch.setattr(builder, "PUBLISHED", {"train": 2, "val": 500})
    monkeypatch.setattr(builder, "_convert", lambda self, pair: pytest.fail("converted"))
    source = write_tree(tmp_path / "source", cityscapes())
    with pytest.raises(pytest.fail.Exception, match="converted"):
        prepare("cityscapes", source, tmp_path, report=lines.append)
    assert lines == ["train: 2 images", "val: 1 images, but 500 are published"]


# What is wrong with a source.


def refuses(name, source, tmp_path, match, **options):
    with pytest.raises(UserError, match=match) as caught:
        prepare(name, source, tmp_path, **options)
    assert "\n" not in str(caught.value)
    assert not sets.is_prepared(name, tmp_path / "data")
    home = tmp_path / "data" / name
    assert [path.name for path in home.iterdir()] == [".lock"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_wrong_folder_is_told_what_it_should_be(name, tmp_path):
    source = write_tree(tmp_path / "source", {"readme.txt": b""})
    words = sets._builder_class(name).SOURCE.split(" ")
    refuses(
        name, source, tmp_path, f"source holds no folder .* --source names {words[0]} {words[1]}"
    )
    refuses(name, tmp_path / "nowhere", tmp_path, "no folder or archive .*nowhere; --source names")


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


def test_an_image_without_a_label_and_the_reverse(tmp_path):
    files = cityscapes()
    del files["gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png"]
    source = write_tree(tmp_path / "1", files)
    refuses("cityscapes", source, tmp_path, r"aachen_000000_000019_leftImg8bit\.png has no label")
    files = ade20k()
    del files["ADEChallengeData2016/images/validation/ADE_val_00000001.jpg"]
    files["ADEChallengeData2016/images/validation/other.jpg"] = b""
    source = write_zip(tmp_path / "2.zip", files)
    refuses("ade20k", source, tmp_path, r"2\.zip: .*/ADE_val_00000001\.png has no image")


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


def test_a_value_outside_the_mapping_of_matlab_labels_and_colours(tmp_path):
    for value in (460, 500):
        source = write_tree(tmp_path / f"{value}", pascal_context([0, value, 70]))
        message = rf"\.mat holds the value {value}; allowed are 0\.\.459"
        refuses("pascal_context", source, tmp_path, message)
    source = write_tree(tmp_path / "2", camvid_original([[64, 128, 64], [1, 2, 3]]))
    refuses("camvid", source, tmp_path, r"_L\.png holds the value #010203; allowed are the colours")


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
    """Overwrites the first place of `data` in an archive."""
    content = path.read_bytes()
    assert data in content
    path.write_bytes(content.replace(data, bytes(len(data)), 1))


def test_a_damaged_image_is_named_or_left_out(tmp_path):
    files = ade20k()
    name = "ADEChallengeData2016/images/training/ADE_train_00000001.jpg"
    files[name] = files[name][:-200]
    source = write_zip(tmp_path / "ade.zip", files)
    label = "ADEChallengeData2016/annotations/validation/ADE_val_00000001.png"
    message = rf"ade\.zip: {name} cannot be read as an image: .*; --skip-damaged leaves such"
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
    refuses("ade20k", source, tmp_path, r"ADE_train_0000000\d\.jpg cannot be read .*CRC")


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

    monkeypatch.setattr(sets, "_fingerprint", fail)
    refuses("ade20k", source, tmp_path, "no space left for .*ade20k.*--data_dir")
    monkeypatch.undo()
    assert prepare("ade20k", source, tmp_path).splits == {"train": 2, "val": 1}


def test_a_full_disk_while_records_are_written(tmp_path, monkeypatch):
    def fail(self, pair):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sets._builder_class("ade20k"), "_convert", fail)
    source = write_tree(tmp_path / "source", ade20k())
    refuses("ade20k", source, tmp_path, "no space left for .*ade20k.*--data_dir")


def test_no_space_to_decompress_an_archive(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    source = write_tar(tmp_path / "voc.tar.gz", voc2012())
    monkeypatch.setattr("shutil.copyfileobj", fail)
    refuses("voc2012", source, tmp_path, f"no space left in {tempfile.gettempdir()} .*TMPDIR")


def test_an_unknown_number_of_classes(tmp_path):
    source = write_tree(tmp_path / "source", pascal_context())
    refuses("pascal_context", source, tmp_path, "59 or 60 classes, not 33", classes=33)


# Prepared sets.


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
        statistics.measure(dataset, "val")


# Photos of users.


def write_photo(source, name, label, orientation):
    """A photo that a camera has stored lying, and a label of it as it is looked at."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = image_like(np.zeros((20, 32)))
    for kind in ("images", "labels"):
        (source / kind / "train").mkdir(parents=True, exist_ok=True)
    path = source / "images" / "train" / f"{name}.jpg"
    Image.fromarray(image).save(path, exif=exif, quality=95)
    Image.fromarray(label).save(source / "labels" / "train" / f"{name}.png")
    return image


def test_photos_are_turned_as_their_camera_noted(tmp_path):
    source = tmp_path / "source"
    lying = write_photo(source, "a", np.eye(32, 20, dtype=np.uint8), 6)
    write_photo(source, "b", np.eye(20, 32, dtype=np.uint8), 1)
    turned, plain = pipeline.load_examples(prepare("folder", source, tmp_path), "train", range(2))
    upright = np.rot90(lying, -1).astype(int)
    assert turned["image"].shape == (32, 20, 3)
    assert np.abs(turned["image"] - upright).mean() < 3
    assert plain["image"].shape == (20, 32, 3)


def test_a_label_of_the_photo_as_stored_is_refused(tmp_path):
    write_photo(tmp_path / "source", "a", np.eye(20, 32, dtype=np.uint8), 6)
    message = r"a\.png is 32 x 20 pixels, but .*a\.jpg is 20 x 32, upright"
    refuses("folder", tmp_path / "source", tmp_path, message)


# The command.


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "kdjax.prepare", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_skips_and_verifies(tmp_path):
    source = tmp_path / "source"
    for number in range(3):
        write_photo(source, f"{number}", np.eye(20, 32, dtype=np.uint8) * 2, 1)
    (source / "images" / "train" / "1.jpg").write_bytes(b"")
    done = run("folder", "--source", source, "--data_dir", tmp_path, "--skip-damaged")
    assert done.returncode == 0, done.stderr
    assert "left out, 1 damaged:" in done.stdout
    assert "images/train/1.jpg cannot be read" in done.stdout
    with Image.open(tmp_path / "folder" / "1.0.0" / "samples.png") as picture:
        assert picture.width > 600
    checked = run("folder", "--data_dir", tmp_path, "--verify")
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.startswith("folder is as it was written")
    written = done.stdout.splitlines()
    written.remove(f"samples in {tmp_path / 'folder' / '1.0.0' / 'samples.png'}")
    assert checked.stdout.splitlines()[1:] == written[1:]
