"""Photos as cameras store them, and the command that prepares them."""

import pathlib

import numpy as np
import pytest
import warm
from original_trees import image_like, prepare, refuses
from PIL import Image

import kdjax
from kdjax import config as configuration
from kdjax.data.loading import pipeline
from kdjax.data.run_data import RunData
from kdjax.utils.classes import distinct_colors
from kdjax.utils.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]


def write_photo(source, name, label, orientation):
    """Writes a photo with an EXIF orientation, and a label of the upright photo."""
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
    message = r"a\.png is 32 x 20 pixels, but .*a\.jpg is 20 x 32, upright; .*by its EXIF"
    refuses("folder", tmp_path / "source", tmp_path, message)


# Height and width of what is looked at; a crop of training is 16 x 16.
SIZES = {"lying.JPG": (24, 32), "stored_lying.jpeg": (32, 24), "stored_head_down.jpg": (24, 32)}
SIZES |= {"gray.PNG": (12, 40)}
SIZES |= {"palette.png": (32, 24), "alpha.png": (10, 8), "wide.tif": (24, 32), "CMYK.jpg": (12, 40)}
# The note of a camera that turns it, and what it has stored.
STORED = {
    "stored_lying.jpeg": (6, Image.Transpose.ROTATE_90),
    "stored_head_down.jpg": (3, Image.Transpose.ROTATE_180),
}
MODES = {"gray.PNG": "L", "palette.png": "P", "alpha.png": "RGBA", "CMYK.jpg": "CMYK"}


def write_photos(source, classes):
    """Writes a flat folder of photos, with labels in colors."""
    colors = distinct_colors(classes)
    table = [f"class {number},{r},{g},{b}" for number, (r, g, b) in enumerate(colors.tolist())]
    (source / "images").mkdir(parents=True)
    (source / "labels").mkdir()
    (source / "classes.csv").write_text("\n".join(["name,r,g,b", *table]))
    for name, (height, width) in SIZES.items():
        label = np.arange(height * width).reshape(height, width) // 5 % classes
        image, exif = Image.fromarray(colors[label]), Image.Exif()
        image.save(source / "labels" / f"{name.partition('.')[0]}_mask.png")
        if name in STORED:
            exif[0x0112], turned = STORED[name]
            image = image.transpose(turned)
        image = image.convert(MODES.get(name, "RGB"))
        image.save(source / "images" / name, exif=exif, quality=95, subsampling=0)


@pytest.mark.thorough
def test_photos_of_all_sizes_train_and_are_scored_and_labeled(tmp_path):
    source, workdir = tmp_path / "source", tmp_path / "run"
    write_photos(source, classes=200)
    dataset = prepare("folder", source, tmp_path, val_share=0.2)
    assert dataset.num_classes == 200
    for split, count in dataset.splits.items():
        for example in pipeline.load_examples(dataset, split, range(count)):
            # The image has the colors of its label, up to JPEG and palette errors.
            shown = dataset.palette[example["label"]].astype(int)
            if example["name"] != "gray":
                assert np.abs(example["image"] - shown).mean() < 20
    config = configuration.default()
    config.update({"steps": 2, "log_every": 1, "eval_every": 2})
    config.data.update({"name": "folder", "data_dir": str(tmp_path / "data"), "batch_size": 8})
    config.data.update({"crop_size": (16, 16), "eval_batch_size": 8, "eval_pad_to": 40})
    config.student.update(configuration.network("tiny", width=4))
    config.student.auxiliary = False
    result = kdjax.train(config, workdir)
    assert np.isfinite(result.scores["val"].miou)
    assert kdjax.evaluate(workdir).miou == result.scores["val"].miou
    kdjax.predict(workdir, str(source / "images" / "*"), tmp_path / "out", pad_to=40)
    for name, (height, width) in SIZES.items():
        with Image.open(tmp_path / "out" / "labels" / f"{name.partition('.')[0]}.png") as label:
            assert label.size == (width, height)


def test_photos_without_labels_are_ignored_throughout(tmp_path):
    source, flat = tmp_path / "source", tmp_path / "flat"
    write_photos(source, classes=2)
    labelled = prepare("folder", source, tmp_path, val_share=0.2)
    pixels = {}
    for split, count in labelled.splits.items():
        examples = pipeline.load_examples(labelled, split, range(count))
        pixels |= {example["name"]: example["image"] for example in examples}
    (source / "images").rename(flat)
    (flat / "gray.PNG").rename(flat / "CMYK.jpg.part")  # no image by its name
    (flat / "deep" / "er").mkdir(parents=True)
    (flat / "lying.JPG").rename(flat / "deep" / "er" / "lying.JPG")
    dataset = prepare("folder", flat, tmp_path / "more", unlabelled=True)
    assert dataset.class_names == ("unlabelled",)
    assert [*dataset.splits] == ["train"]
    examples = pipeline.load_examples(dataset, "train", range(dataset.splits["train"]))
    assert {example["name"] for example in examples} == {
        "deep/er/lying" if name == "lying" else name for name in pixels if name != "gray"
    }
    for example in examples:
        assert (example["label"] == 255).all()
        np.testing.assert_array_equal(example["image"], pixels[example["name"].split("/")[-1]])
    config = configuration.default()
    config.data.update({"name": "folder", "data_dir": str(tmp_path / "more" / "data")})
    with pytest.raises(
        UserError, match=r"^config\.data: folder in .*more/data has no labels to le"
    ):
        RunData(configuration.read(config).data)


def test_a_tree_without_labels_may_have_splits_and_nothing_that_would_not_be_read(tmp_path):
    source = tmp_path / "source"
    for name in ("a", "b"):
        write_photo(source, name, np.eye(20, 32, dtype=np.uint8), 1)
    (source / "images" / "later").mkdir()
    (source / "images" / "train" / "b.jpg").rename(source / "images" / "later" / "b.jpg")
    refuses("folder", source, tmp_path, r"--source \S+/source/images$", unlabelled=True)
    refuses("folder", source, tmp_path, "leave --ignore out", unlabelled=True, ignore=[1])
    (source / "labels").rename(tmp_path / "labels")
    refuses("folder", source, tmp_path, "leave --val_share 0.1 out", unlabelled=True, val_share=0.1)
    refuses("folder", source, tmp_path, "or --unlabelled if there are images alone")
    assert prepare("folder", source, tmp_path, unlabelled=True).splits == {"train": 1, "later": 1}


def run(*arguments):
    return warm.run("-m", "kdjax", "prepare", *arguments)


def test_the_command_skips_and_verifies(tmp_path):
    source = tmp_path / "source"
    for number in range(3):
        write_photo(source, f"{number}", np.eye(20, 32, dtype=np.uint8) * 2, 1)
    (source / "images" / "train" / "1.jpg").write_bytes(b"")
    done = run("folder", "--source", source, "--data_dir", tmp_path, "--skip-damaged")
    assert done.returncode == 0, done.stderr
    assert "skipped 1 damaged images:" in done.stdout
    assert "images/train/1.jpg cannot be read" in done.stdout
    with Image.open(tmp_path / "folder" / "1.0.0" / "samples.png") as picture:
        assert picture.width > 600
    checked = run("folder", "--data_dir", tmp_path, "--verify")
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.startswith("folder has not changed")
    written = done.stdout.splitlines()
    written.remove(f"samples in {tmp_path / 'folder' / '1.0.0' / 'samples.png'}")
    assert checked.stdout.splitlines()[1:] == written[1:]
