"""Wrong and unusual files, in every published set."""

import io

import numpy as np
import pytest
from original_trees import PUBLISHED, TREES, prepare, refuses, write_tree, write_zip
from PIL import Image

from kdjax.data.loading import pipeline

# Of each set, how the paths of two images to train on begin, and how those of their labels do.
FOLDERS = {
    "cityscapes": ("leftImg8bit/train/", "gtFine/train/"),
    "voc2012": (
        "VOCdevkit/VOC2012/JPEGImages/2007_00003",
        "VOCdevkit/VOC2012/SegmentationClass/2007_00003",
    ),
    "ade20k": (
        "ADEChallengeData2016/images/training/",
        "ADEChallengeData2016/annotations/training/",
    ),
    "pascal_context": ("VOCdevkit/VOC2010/JPEGImages/2008_0000", "trainval/2008_0000"),
    "coco_stuff": ("images/train2017/", "annotations/train2017/"),
    "camvid": ("CamVid/train/", "CamVid/trainannot/"),
}
MODES = ("L", "P", "LA", "RGBA", "CMYK")


def paths_of(name, files):
    """Returns the paths of images to train on, and of their labels."""
    kinds = ("_labelIds.png", ".mat", ".jpg", ".png")
    found = [
        sorted(path for path in files if path.startswith(start) and path.endswith(kinds))
        for start in FOLDERS[name]
    ]
    # Other kinds of labels, and images of other splits.
    others = ("_color", "_instanceIds", "_labelTrainIds", "2007_000033", "2008_000002")
    return [[path for path in paths if not any(o in path for o in others)] for paths in found]


def opened(data):
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image


def saved(image, kind="png", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def of_mode(mode, size):
    """Returns a file with a gray ramp in an image of `mode`, and its values in 8 bits."""
    gray = np.tile(np.linspace(0, 255, size[0]).astype(np.uint8), (size[1], 1))
    image = Image.fromarray(gray)
    if mode == "CMYK":
        # PNG has no CMYK, and JPEG would change the values.
        return saved(image.convert("RGB").convert(mode), "tiff"), gray
    image = image.convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(7)
    return saved(image), gray


@pytest.mark.parametrize(
    ("name", "modes"),
    [(name, (MODES[i % 5], MODES[(i + 3) % 5])) for i, name in enumerate(PUBLISHED)],
)
def test_images_of_any_kind_become_rgb(name, modes, tmp_path):
    files = TREES[name]()
    images, _ = paths_of(name, files)
    expected = []
    for path, mode in zip(images, modes, strict=False):
        files[path], gray = of_mode(mode, opened(files[path]).size)
        assert opened(files[path]).mode == mode
        expected.append(gray)
    dataset = prepare(name, write_tree(tmp_path / "source", files), tmp_path)
    examples = pipeline.load_examples(dataset, "train", range(2))
    for example, gray in zip(examples, expected, strict=True):
        np.testing.assert_array_equal(example["image"], np.repeat(gray[..., None], 3, 2))


@pytest.mark.parametrize("name", ["ade20k", "camvid"])
def test_photos_are_taken_as_stored_whatever_the_camera_noted(name, tmp_path):
    # The labels of published sets were drawn on the pixels as they are stored.
    files = TREES[name]()
    (path, *_), _ = paths_of(name, files)
    exif = Image.Exif()
    exif[0x0112] = 6
    image = opened(files[path])
    files[path] = saved(image, exif=exif)
    assert opened(files[path]).getexif()[0x0112] == 6
    dataset = prepare(name, write_tree(tmp_path / "source", files), tmp_path)
    (example,) = pipeline.load_examples(dataset, "train", [0])
    np.testing.assert_array_equal(example["image"], np.asarray(image))


def image_missing(name, files, image, label):
    del files[image]
    return ""


def label_missing(name, files, image, label):
    del files[label]
    return ""


def empty_image(name, files, image, label):
    files[image] = b""
    return f"{image} cannot be read as an image"


def empty_label(name, files, image, label):
    files[label] = b""
    return f"{label} cannot be read"


def half_an_image(name, files, image, label):
    files[image] = files[image][: len(files[image]) // 2]
    return f"{image} cannot be read as an image"


def another_size(name, files, image, label):
    width, height = opened(files[image]).size
    files[image] = saved(Image.new("RGB", (width - 1, height)))
    return f"{label} is {width} x {height} pixels, but "


@pytest.mark.parametrize(
    "breaks",
    [image_missing, label_missing, empty_image, empty_label, half_an_image, another_size],
)
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_broken_file_is_named_and_nothing_is_left(name, breaks, tmp_path):
    files = TREES[name]()
    (image, *_), (label, *_) = paths_of(name, files)
    stem = image.rpartition("/")[2].removesuffix("_leftImg8bit.png").partition(".")[0]
    assert stem in label
    named = breaks(name, files, image, label)
    refuses(name, write_tree(tmp_path / "source", files), tmp_path, named or stem)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_archive_of_another_set_is_refused(name, tmp_path):
    other = "ade20k" if name != "ade20k" else "cityscapes"
    source = write_zip(tmp_path / "other.zip", TREES[other]())
    refuses(name, source, tmp_path, r"other\.zip holds no folder .* --source names ")
