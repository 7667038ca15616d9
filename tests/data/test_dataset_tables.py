"""Classes, label values, and splits of the published sets, compared with tables of facts."""

import gzip
import json
import pathlib

from original_trees import ROOT, committed, found_in, published, write_zip

TABLES = pathlib.Path(__file__).parent / "tables"


def shared(table):
    """A table of facts, copied from where the sets' own projects publish them."""
    return json.loads(gzip.decompress((TABLES / f"{table}.json.gz").read_bytes()))


def test_classes_are_those_of_the_published_tables():
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


def test_label_values_are_those_of_the_published_tables():
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


def test_pascal_context_of_59_classes_leaves_background_out():
    assert committed("pascal_context")[1][1:] == shared("pascal_context59")["classes"]
    assert committed("pascal_context")[2][1:] == shared("pascal_context59")["palette"]
    # The 459 labels are in alphabetical order, and so are their classes.
    values = list(committed("pascal_context")[0])
    assert values == sorted(values)
    assert len(values) == 60


def test_splits_of_cityscapes_are_those_of_the_published_lists(tmp_path):
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


def test_train_aug_of_voc_is_the_published_list(tmp_path):
    aug, val = shared("voc_train_aug_ids")["ids"], shared("voc_val_ids")["ids"]
    # The union does not depend on which images VOC itself labels.
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


def test_frames_of_camvid_are_split_by_sequence():
    lists = {
        split: (ROOT / "datasets" / "camvid" / f"{split}.txt").read_text().split()
        for split in ("train", "val", "test")
    }
    assert {split: len(names) for split, names in lists.items()} == published("camvid")
    assert len(set().union(*lists.values())) == 701
    assert {name.partition("_")[0] for name in lists["val"]} == {"0016E5"}
    assert sum(name.startswith("Seq05VD") for name in lists["test"]) == 171
