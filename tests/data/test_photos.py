"""Photos of users, as cameras store them, and the command that prepares them."""

import pathlib

import numpy as np
import warm
from original_trees import image_like, prepare, refuses
from PIL import Image

from kdjax.data.loading import pipeline

ROOT = pathlib.Path(__file__).resolve().parents[2]


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


def run(*arguments):
    return warm.run("-m", "kdjax.prepare", *arguments)


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
