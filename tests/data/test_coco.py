"""Labels from COCO's annotation files, and what is wrong in such files."""

import json
import re
import sys

import numpy as np
import pytest
from PIL import Image

from kdjax.data import sets
from kdjax.utils.errors import UserError

mask = pytest.importorskip("pycocotools.mask", reason="pip install pycocotools")
# pycocotools 2.0.11 calls NumPy as before its version 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SIZE = (12, 16)


def square(top, left, side):
    bottom, right = top + side, left + side
    return [left, top, right, top, right, bottom, left, bottom]


def encoded(pixels):
    """The RLE of a mask as text, as COCO's files hold it."""
    found = mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
    return {"size": list(SIZE), "counts": found["counts"].decode()}


def counted(pixels):
    """The RLE of a mask as a list of counts, column by column, zeros first."""
    flat = pixels.ravel(order="F").astype(int)
    ends = [*(np.flatnonzero(np.diff(flat)) + 1), flat.size]
    counts = np.diff([0, *ends]).tolist()
    return {"size": list(SIZE), "counts": ([0] if flat[0] else []) + counts}


def annotations(names, segmentations):
    """A file in which every image has the same masks, of the categories 7 (cat) and 3 (dog)."""
    images = [
        {"id": 10 + number, "file_name": name, "height": SIZE[0], "width": SIZE[1]}
        for number, name in enumerate(names)
    ]
    masks = [
        {"image_id": image["id"], "category_id": category, "segmentation": segmentation}
        for image in images
        for category, segmentation in segmentations
    ]
    categories = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
    return {"images": images, "annotations": masks, "categories": categories}


RING = np.zeros(SIZE, bool)
RING[6:10, 9:15] = True
RING[7:9, 10:14] = False
MASKS = [(3, [square(1, 1, 6)]), (7, [square(2, 2, 2), square(9, 2, 2)]), (3, encoded(RING))]
NAMES = [f"{name}.png" for name in "abcde"]


@pytest.fixture
def source(tmp_path):
    """Images a to e without splits, and their annotations."""
    folder = tmp_path / "source" / "images"
    folder.mkdir(parents=True)
    for name in NAMES:
        Image.fromarray(np.full((*SIZE, 3), ord(name[0]), np.uint8)).save(folder / name)
    write(folder.parent, annotations(NAMES, MASKS))
    return folder.parent


def write(source, content, name="annotations.json"):
    (source / name).parent.mkdir(exist_ok=True)
    (source / name).write_text(content if isinstance(content, str) else json.dumps(content))


def prepare(source, **options):
    lines = []
    data = source.parent / "data"
    dataset = sets.prepare("folder", data, source=source, report=lines.append, **options)
    label = next(dataset.records("train").decoded([0]))["label"]
    return dataset, label, lines


def expected(background=0, dog=1, cat=2):
    label = np.full(SIZE, background)
    label[1:7, 1:7] = dog
    label[2:4, 2:4] = label[9:11, 2:4] = cat  # smaller, so above the dog
    label[RING] = dog
    return label


def test_polygons_and_rle_are_drawn_small_above_large(source):
    dataset, label, lines = prepare(source, val_share=0.3)
    assert dataset.class_names == ("background", "dog", "cat")  # in the order of their ids
    np.testing.assert_array_equal(label, expected())
    assert any("pixels without a mask are the class background" in line for line in lines)
    assert sum(dataset.splits.values()) == 5


def test_counts_in_lists_are_the_same_as_in_text(source):
    write(source, annotations(NAMES, [*MASKS[:2], (3, counted(RING))]))
    np.testing.assert_array_equal(prepare(source, val_share=0.3)[1], expected())


def test_pixels_without_a_mask_or_a_class_may_be_ignored(source):
    dataset, label, _ = prepare(source, ignore=["background"], val_share=0.3)
    assert dataset.class_names == ("dog", "cat")
    np.testing.assert_array_equal(label, expected(255, 0, 1))


def test_splits_have_files_of_their_own_or_share_one(source):
    for split, names in {"train": NAMES[:3], "val": NAMES[3:]}.items():
        (source / "images" / split).mkdir()
        for name in names:
            (source / "images" / name).rename(source / "images" / split / name)
    dataset, label, _ = prepare(source)
    assert dataset.splits == {"train": 3, "val": 2}
    np.testing.assert_array_equal(label, expected())
    (source / "annotations.json").unlink()
    write(source, annotations(NAMES[:3], MASKS), "annotations/train.json")
    with pytest.raises(UserError, match=r"there is no annotations/val\.json beside .*images"):
        sets.prepare("folder", source.parent / "more", source=source)
    write(source, annotations(["val/d.png", "val/e.png"], MASKS), "annotations/val.json")
    again = sets.prepare("folder", source.parent / "more", source=source)
    assert again.fingerprint == dataset.fingerprint


def wrong_mask(segmentation):
    return annotations(NAMES, [(3, segmentation)])


WRONG = {
    "no json": ("{", r"is no COCO annotation file of images, .*: JSONDecodeError"),
    "another": ({"images": []}, r"is no COCO annotation file .*: KeyError: 'categories'"),
    "no entry": (annotations(NAMES[1:], MASKS), r"a\.png is not in .*annotations\.json"),
    "no file": (annotations([*NAMES, "f.png"], MASKS), r"names f\.png, which is not under images/"),
    "twice": (annotations([*NAMES, "a.png"], MASKS), "names an image twice"),
    "a box": (wrong_mask(None), r"json/a\.png has a box without a mask"),
    "four numbers": (wrong_mask([[1, 1, 5, 5]]), "no list of polygons"),
    "no points": (wrong_mask([]), "no list of polygons"),
    "size": (
        wrong_mask({"size": [9, 9], "counts": [81]}),
        r"has a mask of \[9, 9\] \(height, width\); its image has \[12, 16\]",
    ),
    "counts": (
        wrong_mask({"size": [*SIZE], "counts": [5, 5]}),
        "RLE mask: its counts do not add up",
    ),
    "text": (wrong_mask({"size": [*SIZE], "counts": "999999"}), "has a damaged RLE mask"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_mistakes_are_named_and_leave_nothing_behind(source, kind):
    content, message = WRONG[kind]
    write(source, content)
    with pytest.raises(UserError, match=message) as raised:
        prepare(source)
    assert "\n" not in str(raised.value)
    assert not list((source.parent / "data").rglob("*.json"))


def test_sizes_options_and_files_that_contradict_each_other(source):
    for options, message in (
        ({"ignore": ["dgo"]}, '--ignore dgo is no class of the annotations: did you mean "dog"'),
        ({"ignore_unknown": True}, "leave --ignore_unknown out"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            prepare(source, **options)
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(source / "images" / "a.png")
    with pytest.raises(UserError, match=r"json/a\.png is 16 x 12 pixels, but .* is 9 x 8"):
        prepare(source)
    (source / "labels").mkdir()
    with pytest.raises(UserError, match=r"has labels/ and annotations\.json; keep one"):
        prepare(source)


def test_without_pycocotools_the_error_says_how_to_install_it(source, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    with pytest.raises(UserError, match=r'is read by pycocotools: pip install "kdjax\[coco\]"$'):
        prepare(source)
