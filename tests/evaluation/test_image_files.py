"""Predictions of image files: label maps, overlays, and a legend."""

import io
import pathlib
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from flax import nnx
from PIL import Image

from kdjax.data.preparing import classes
from kdjax.evaluation.evaluator import TrainedNetwork
from kdjax.evaluation.inference import WHOLE, Inference
from kdjax.evaluation.predict_files import find_images, predict_files
from kdjax.models import NNXNetwork, serialization
from kdjax.reporting.pictures import label_png, overlay_png
from kdjax.utils.bands import RGB
from kdjax.utils.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
PALETTE = ((250, 10, 20), (10, 240, 30), (20, 30, 230))
SLIDE = Inference((16, 24), (8, 16))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("network")
    net = tiny.create(num_classes=3, width=4, auxiliary=False, dtype="float32", rngs=nnx.Rngs(2))
    info = serialization.NetworkInfo("tiny", 3, 4, False, ("red", "green", "blue"), PALETTE)
    serialization.save(path, info, NNXNetwork.of(net)[1])
    return path


@pytest.fixture(scope="module")
def network(checkpoint):
    return TrainedNetwork.load(str(checkpoint), inference=SLIDE)


@pytest.fixture
def photos(tmp_path):
    """Makes an upright photo, a rotated one, and one for each unusual pixel format."""
    folder = tmp_path / "photos"
    (folder / "deep" / "er").mkdir(parents=True)
    blocks = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    picture = Image.fromarray(blocks.repeat(8, 0).repeat(8, 1))
    picture.save(folder / "plain.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(folder / "deep" / "lying.jpg", exif=exif, quality=95)
    picture.convert("L").save(folder / "deep" / "er" / "gray.png")
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    picture.quantize(16).save(folder / "palette.png")
    picture.convert("RGBA").save(folder / "alpha.png")
    picture.convert("LA").save(folder / "deep.png")
    return folder


def opened(path):
    """Returns the image with its file closed."""
    with Image.open(path) as image:
        image.load()
    return image


@pytest.mark.parametrize("save", ["scores", "probabilities"])
@pytest.mark.parametrize("inference", [WHOLE, SLIDE, Inference(scales=(1.0, 1.5), flip=True)])
def test_class_scores_are_saved_beside_the_labels(checkpoint, photos, tmp_path, save, inference):
    network = TrainedNetwork.load(str(checkpoint), inference=inference)
    files = find_images(str(photos), str(tmp_path / "out"), overwrite=False)
    predict_files(network, files, str(tmp_path / "out"), batch_size=8, save=save)
    for one in files:
        found = np.load(one.scores)
        image = np.array(opened(one.image).convert("RGB"))[None]
        scores = np.asarray(network.predictor.scores(network.variables, image))[0]
        if save == "probabilities":
            scores = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
            np.testing.assert_allclose(found.sum(-1, dtype=np.float32), 1, atol=2e-3)
        assert found.dtype == np.float16
        np.testing.assert_allclose(found, scores, rtol=2e-3, atol=2e-3)
        label = np.array(opened(one.label))
        chosen = np.take_along_axis(found, label[..., None], -1)[..., 0]
        np.testing.assert_array_equal(chosen, found.max(-1))


def test_every_kind_of_image_is_labeled_at_its_own_size(network, photos, tmp_path):
    files = find_images(f"{photos}/**/*.*", str(tmp_path / "out"), overwrite=False)
    timing = predict_files(network, files, str(tmp_path / "out"), batch_size=8, pad_to=16)
    assert timing.images == len(files) == 7
    assert re.search(r"^7 images in .* 1 size of images\); network: ", str(timing))
    names = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png")}
    kinds = ("plain", "cmyk", "palette", "alpha", "deep", "deep/lying", "deep/er/gray")
    assert names == {
        "legend.png",
        *(f"{place}/{kind}.png" for place in ("labels", "overlays") for kind in kinds),
    }
    label = opened(tmp_path / "out" / "labels" / "plain.png")
    assert label.mode == "P"
    image = np.asarray(opened(photos / "plain.png"))
    expected = np.asarray(network.predictor(network.variables, image[None]))[0]
    assert len(np.unique(expected)) > 1
    assert (np.asarray(label) == expected).mean() > 0.998
    colors = np.array(PALETTE, np.uint8)[np.asarray(label)]
    np.testing.assert_array_equal(np.asarray(label.convert("RGB")), colors)
    overlay = np.asarray(opened(tmp_path / "out" / "overlays" / "plain.png"))
    assert np.abs(overlay - (image / 2 + colors / 2)).max() <= 1
    upright = opened(tmp_path / "out" / "labels" / "deep" / "lying.png")
    assert upright.size == (32, 40)


def test_a_damaged_image_is_named_when_the_others_are_done(network, photos, tmp_path):
    whole = (photos / "plain.png").read_bytes()
    (photos / "cut.png").write_bytes(whole[: len(whole) // 2])
    whole = (photos / "cmyk.jpg").read_bytes()
    (photos / "short.jpg").write_bytes(whole[: len(whole) // 2])
    files = find_images(f"{photos}/*[nt].*", str(tmp_path / "out"), overwrite=False)
    with pytest.raises(UserError, match=r"2 of 3 images were left out: .*cut\.png"):
        predict_files(network, files, str(tmp_path / "out"), batch_size=8)
    assert [path.name for path in (tmp_path / "out" / "labels").iterdir()] == ["plain.png"]


def test_a_folder_stands_for_the_images_in_it(photos, tmp_path):
    (photos / "notes.txt").touch()
    (photos / ".hidden.png").touch()
    (photos / "PHOTO.JPG").touch()
    found = find_images(str(photos), str(photos / "out"), overwrite=False)
    names = ["PHOTO.JPG", "alpha.png", "cmyk.jpg", "deep.png", "palette.png", "plain.png"]
    assert [one.image.name for one in found] == names
    assert found[1].label == photos / "out" / "labels" / "alpha.png"
    (photos / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty' matches no file; name a folder with images, or"):
        find_images(str(photos / "empty"), str(tmp_path / "out"), overwrite=False)


def test_nothing_is_replaced_unless_asked(photos, tmp_path):
    pattern, output = f"{photos}/*.png", str(tmp_path / "out")
    (first, *_) = find_images(pattern, output, overwrite=False)
    first.overlay.parent.mkdir(parents=True)
    first.overlay.touch()
    with pytest.raises(UserError, match=r"alpha\.png exists \(1 such files\); --overwrite"):
        find_images(pattern, output, overwrite=False)
    assert len(find_images(pattern, output, overwrite=True)) == 4


@pytest.mark.parametrize(
    ("names", "pattern", "message"),
    [
        ([], "*.png", r"matches no file"),
        (["a.png", "a.jpg"], "*", r"a\.jpg and .*a\.png would both be written to a\.png"),
        (["A.jpg", "a.png"], "*", r"A\.jpg and .*a\.png .* differ in case alone"),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_patterns_that_cannot_be_served(tmp_path, names, pattern, message, overwrite):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=message):
        find_images(f"{tmp_path}/{pattern}", str(tmp_path / "out"), overwrite=overwrite)


def test_a_legend_that_is_there_is_a_result_like_others(photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "legend.png").symlink_to("nowhere")
    pattern, output = f"{photos}/*.png", str(tmp_path / "out")
    with pytest.raises(UserError, match=r"legend\.png exists \(1 such files\); --overwrite"):
        find_images(pattern, output, overwrite=False)
    assert len(find_images(pattern, output, overwrite=True)) == 4


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("place", ["photos", "link", "photos/deep/.."])
def test_an_image_is_never_replaced(photos, tmp_path, overwrite, place):
    (photos / "plain.png").rename(photos / "legend.png")
    (tmp_path / "link").symlink_to("photos")
    with pytest.raises(UserError, match=r"legend\.png lies where .* has results; name another"):
        find_images(f"{photos}/*.png", str(tmp_path / place), overwrite=overwrite)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_photo_that_a_linked_image_stands_for_is_never_replaced(photos, tmp_path, overwrite):
    (tmp_path / "links").mkdir()
    out = tmp_path / "out"
    out.mkdir()
    (photos / "plain.png").rename(out / "legend.png")
    (tmp_path / "links" / "plain.png").symlink_to(out / "legend.png")
    with pytest.raises(UserError, match=r"links/plain\.png lies where .* has results"):
        find_images(f"{tmp_path}/links/*.png", str(out), overwrite=overwrite)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("pattern", ["labels/*.png", "*/*.png", "**/*.png", "link/*.png"])
def test_images_in_the_folders_of_results_are_refused(photos, pattern, overwrite):
    (photos / "plain.png").rename(photos / "deep" / "plain.png")
    (photos / "deep").rename(photos / "labels")
    (photos / "link").symlink_to("labels")
    with pytest.raises(UserError, match=r"\.png lies where --output .* has results"):
        find_images(f"{photos}/{pattern}", str(photos), overwrite=overwrite)


def test_an_image_too_small_for_a_scale_is_named_before_anything_is_written(photos, tmp_path):
    inference = Inference(scales=(1.0, 0.01))
    network = SimpleNamespace(
        info=SimpleNamespace(palette=PALETTE, bands=RGB),
        predictor=SimpleNamespace(inference=inference),
    )
    files = find_images(f"{photos}/plain.png", str(tmp_path / "out"), overwrite=False)
    with pytest.raises(UserError, match=r"plain\.png: at scale 0\.01, 32 x 40 pixels become 0 x 0"):
        predict_files(network, files, str(tmp_path / "out"), batch_size=8)
    assert not (tmp_path / "out").exists()


def test_original_ids_have_the_colors_of_their_classes(network, photos, tmp_path):
    values = [7, 200, 11]
    for name, ids in (("ids", values), ("numbers", None)):
        files = find_images(f"{photos}/plain.png", str(tmp_path / name), overwrite=False)
        predict_files(network, files, str(tmp_path / name), batch_size=8, values=ids)
    ids, numbers = (opened(tmp_path / name / "labels" / "plain.png") for name in ("ids", "numbers"))
    np.testing.assert_array_equal(np.asarray(ids), np.array(values)[np.asarray(numbers)])
    np.testing.assert_array_equal(ids.convert("RGB"), numbers.convert("RGB"))


@pytest.mark.parametrize(
    ("values", "message"),
    [(range(4), "scores 3 classes, .* has 4"), ([1, 2, 459], "go up to 459; .* hold 0..255")],
)
def test_ids_that_do_not_fit(network, tmp_path, values, message):
    with pytest.raises(UserError, match=message):
        predict_files(network, [], str(tmp_path), batch_size=8, values=values)
    assert not list(tmp_path.iterdir())


def test_a_batch_that_the_devices_cannot_share(network, tmp_path):
    with pytest.raises(UserError, match=r"--batch_size is 3; .* multiple of the 8 devices"):
        predict_files(network, [], str(tmp_path), batch_size=3)


def test_original_labels_of_data_sets():
    assert classes.original_labels("cityscapes")[:3] == [7, 8, 11]
    with pytest.raises(UserError, match=r"'shapes' has no original ids; .* cityscapes"):
        classes.original_labels("shapes")


def test_pictures_by_hand():
    colors = np.zeros((256, 3), np.uint8)
    label = np.array([[0, 1]], np.uint8)
    assert label_png(label, colors).startswith(b"\x89PNG")
    image, palette = np.zeros((1, 2, 3), np.uint8), np.full((2, 3), 200, np.uint8)
    pixels = np.asarray(Image.open(io.BytesIO(overlay_png(image, label, palette, 0.25))))
    assert (pixels == 50).all()


@pytest.mark.thorough
def test_the_command_needs_no_tensorflow(checkpoint, photos, tmp_path):
    code = (
        "import sys; sys.modules['tensorflow'] = sys.modules['tensorflow_datasets'] = None; "
        "sys.path.insert(0, 'tests'); import tiny; "
        "from kdjax.models import NETWORKS; NETWORKS['tiny'] = 'tiny:create'; "
        "from kdjax.cli import command; from kdjax.cli.predict import main; command.run(main)"
    )
    arguments = [f"--workdir={checkpoint}", f"--images={photos}/plain.png", "--mode=slide"]
    arguments += ["--window=16,24", f"--output={tmp_path / 'out'}"]
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("1 image in ")
    assert (tmp_path / "out" / "labels" / "plain.png").is_file()
