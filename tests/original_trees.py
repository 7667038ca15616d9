"""Made-up trees of the original form of every published set, and the facts in their tables.

Nothing here was ever downloaded. The trees have the names and encodings of the real ones, and a few
pixels an image.
"""

import io
import pathlib
import tarfile
import zipfile

import numpy as np
import pytest
import scipy.io
from PIL import Image

from kdjax.data import sets
from kdjax.data.loading import pipeline
from kdjax.data.preparing.builder import find_builder
from kdjax.data.preparing.tree import Tree
from kdjax.utils.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]
PUBLISHED = ("cityscapes", "voc2012", "ade20k", "pascal_context", "coco_stuff", "camvid")


def rows_of(name, table="classes"):
    """Returns the lines of a committed table, split at their commas."""
    lines = (ROOT / "datasets" / name / f"{table}.csv").read_text().splitlines()
    return [line.split(",") for line in lines if not line.startswith("#")][1:]


def committed(name):
    """Returns class ids by label value, names, and colors in the committed table."""
    rows = rows_of(name)
    ids = {int(row[0]): number for number, row in enumerate(rows)}
    return ids, [row[1] for row in rows], [[int(value) for value in row[2:5]] for row in rows]


# Files of the original form, by path.


def label_of(values):
    """Returns a label of four rows that holds each of `values`."""
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
    """Returns a PNG like VOC's: indices with a palette of 256 colors."""
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
    """Returns all frames, with one picture for all because that is faster."""
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
    """Returns the converted label of four rows."""
    return np.tile(np.array([ids.get(int(v), 255) for v in values], np.uint8), (4, 1))


def assert_labels(dataset, values, ids):
    for split in dataset.splits:
        for label in labels(dataset, split).values():
            np.testing.assert_array_equal(label, expected(values, ids))


def found_in(name, source):
    builder = find_builder(name)
    return builder.pairs_in(builder, Tree(source, builder.SOURCE, source.parent / "unpacked"))


def published(name):
    return find_builder(name).PUBLISHED


def refuses(name, source, tmp_path, match, **options):
    with pytest.raises(UserError, match=match) as caught:
        prepare(name, source, tmp_path, **options)
    assert "\n" not in str(caught.value)
    assert not sets.is_prepared(name, tmp_path / "data")
    assert not (tmp_path / "data" / name).exists()
