"""Runs on images of several bands, from the training to the exported file."""

import json

import jax
import numpy as np
import pytest
import tiny
from flax import nnx
from made_up_files import needs_onnx, write_onnx
from ml_collections import ConfigDict
from PIL import Image

import kdjax
from kdjax import config as configuration
from kdjax.data import Dataset, measure_bands
from kdjax.evaluation.evaluator import TrainedNetwork
from kdjax.experiment.student import _spread, make_student
from kdjax.models import NNXNetwork, serialization
from kdjax.models.outputs import IMAGENET
from kdjax.utils.bands import RGB, Bands
from kdjax.utils.errors import UserError

NAMES = ("dry", "wet")
PALETTE = ((200, 100, 0), (0, 100, 200))


def scene(seed, dtype="uint16"):
    """An image of five bands, of which the last alone shows the class."""
    generator = np.random.default_rng(seed)
    label = np.zeros((24, 32), int)
    label[:, generator.integers(8, 24) :] = 1
    image = generator.integers(100, 200, (24, 32, 5))
    image[..., 4] += 100 * label
    scale = {"uint8": 0.5, "uint16": 100, "float32": 1e-3}[dtype]
    return {"image": (image * scale).astype(dtype), "label": label}


def bands_set(dtype="uint16", count=12):
    splits = {
        split: [scene(seed + offset, dtype) for seed in range(count)]
        for split, offset in (("train", 0), ("val", 1000))
    }
    bands = measure_bands([example["image"] for example in splits["train"]], (4, 1, 0))
    return Dataset(splits, NAMES, palette=PALETTE, bands=bands, name="scenes")


def make_config(steps=60):
    config = configuration.default()
    config.steps = config.eval_every = steps
    config.log_every = steps
    config.data.batch_size, config.data.eval_batch_size = 8, 8
    config.data.crop_size = (24, 24)
    config.data.max_class_share = 1.0
    config.student.update(configuration.network("tiny", width=8))
    config.student.auxiliary = False
    config.optimizer.learning_rate = 0.1
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("bands") / "run"
    return kdjax.train(make_config(), workdir, data=bands_set()), workdir


def test_a_student_learns_from_all_bands(run):
    result, workdir = run
    assert result.scores["val"].miou > 0.8
    stored = json.loads((workdir / "student" / "network.json").read_text())
    bands = bands_set().bands
    assert stored["bands"] == [bands.dtype, list(bands.mean), list(bands.std), [4, 1, 0]]
    assert stored["preprocessing"][:2] == [list(bands.mean), list(bands.std)]
    assert (workdir / "report.html").exists()


def test_it_predicts_arrays_and_files_of_its_bands(run, tmp_path):
    _, workdir = run
    network = kdjax.load(workdir)
    example = scene(1000)
    found = network.predict(example["image"])
    assert (found == example["label"]).mean() > 0.8
    with pytest.raises(UserError, match=r"they must be uint16 \[B, H, W, 5\] or \[H, W, 5\]"):
        network.predict(example["image"][..., :3])
    with pytest.raises(UserError, match=r"images are float32 .* they must be uint16"):
        network.predict(example["image"].astype(np.float32))
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "a.npy", example["image"])
    kdjax.predict(workdir, str(tmp_path / "in"), tmp_path / "out")
    with Image.open(tmp_path / "out" / "labels" / "a.png") as label:
        np.testing.assert_array_equal(np.asarray(label), found)
    with Image.open(tmp_path / "out" / "overlays" / "a.png") as overlay:
        assert overlay.size == (32, 24)
    Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(tmp_path / "in" / "b.png")
    with pytest.raises(UserError, match=r"b\.png is an 8-bit photo; this data"):
        kdjax.predict(workdir, str(tmp_path / "in"), tmp_path / "more")


def test_evaluate_reads_the_bands(run, monkeypatch, tmp_path):
    result, workdir = run
    found = kdjax.evaluate(workdir, data=bands_set(), pictures=tmp_path / "pictures")
    assert found.miou == pytest.approx(result.scores["val"].miou)
    assert (tmp_path / "pictures" / "worst_1.png").exists()
    photos = Dataset(
        {
            split: [{"image": np.zeros((24, 32, 3), int), "label": scene(0)["label"]}]
            for split in ("train", "val")
        },
        NAMES,
    )
    with pytest.raises(UserError, match="takes 5 channels, and gets 3 bands"):
        kdjax.evaluate(workdir, data=photos)


@pytest.mark.parametrize("name", ["stablehlo", "tflite"])
def test_an_exported_file_takes_the_bands(run, tmp_path, name):
    _, workdir = run
    (export,) = kdjax.export(workdir, tmp_path / "out", name, size=(24, 32))
    assert export.agreement.agreeing > 0.99 * export.agreement.pixels
    described = json.loads((tmp_path / "out" / "export.json").read_text())
    assert described["input"] == {
        "name": "images",
        "type": "uint16",
        "channels": "5 bands, not normalised",
    }
    assert described["exports"][name]["input_shape"][-1] == 5
    found = kdjax.evaluate(workdir, data=bands_set(), exported=tmp_path / "out" / export.file)
    assert found.miou > 0.8


def save_teacher(path, channels=3, dtype="uint8"):
    net = tiny.create(
        num_classes=2,
        width=4,
        auxiliary=False,
        dtype="float32",
        rngs=nnx.Rngs(0),
        in_channels=channels,
    )
    bands = RGB if (channels, dtype) == (3, "uint8") else Bands(dtype, (0.0,) * 5, (1.0,) * 5)
    preprocessing = IMAGENET if channels == 3 else type(IMAGENET)(bands.mean, bands.std)
    info = serialization.NetworkInfo(
        "tiny", 2, 4, False, NAMES, PALETTE, preprocessing, bands=bands
    )
    serialization.save(path, info, NNXNetwork.of(net)[1])
    return str(path)


@pytest.mark.parametrize("cached", [False, True])
def test_a_teacher_of_photos_reads_three_of_the_bands(tmp_path, cached):
    config = make_config(2)
    config.teacher.checkpoint = save_teacher(tmp_path / "teacher")
    config.teacher.bands = (3, 1, 0)
    config.teacher.cache = str(tmp_path / "cache") if cached else ""
    with config.unlocked():
        config.terms = ConfigDict({"kl": configuration.term("pixelwise_kl")})
    data = bands_set("uint8")
    kdjax.train(config, tmp_path / "run", data=data)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    images = np.stack([example["image"] for example in data.records("val").decoded(range(12))])
    teacher = TrainedNetwork.load(config.teacher.checkpoint).predict(images[..., [3, 1, 0]])
    student = kdjax.load(tmp_path / "run").predict(images)
    # The agreement is that with what the teacher says of its three bands.
    agreement = (teacher == student).mean()
    assert result["scores"]["val"]["agreement"] == pytest.approx(agreement, abs=1e-3)
    other = TrainedNetwork.load(config.teacher.checkpoint).predict(images[..., [0, 1, 3]])
    assert (teacher != other).any()


@pytest.mark.parametrize(
    ("changes", "dtype", "message"),
    [
        ({"bands": (0, 1, 9)}, "uint8", r"bands is \(0, 1, 9\); the images have the bands 0\.\.4"),
        ({}, "uint8", "takes 3 channels, and gets 5 bands; name those of the images"),
        ({"bands": (0, 1)}, "uint8", "takes 3 channels, and gets 2 bands"),
        ({"bands": (0, 1, 2)}, "uint16", "was trained on uint8, and the images are uint16"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(tmp_path, changes, dtype, message):
    config = make_config(2)
    config.teacher.checkpoint = save_teacher(tmp_path / "teacher")
    config.teacher.update(changes)
    with config.unlocked():
        config.terms = ConfigDict({"kl": configuration.term("pixelwise_kl")})
    with pytest.raises(UserError, match=message):
        kdjax.train(config, tmp_path / "run", data=bands_set(dtype))


@needs_onnx
def test_a_file_of_four_bands_teaches(tmp_path):
    weights = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    config = make_config(2)
    config.teacher.checkpoint = write_onnx(tmp_path / "four.onnx", weights=weights)
    config.teacher.bands = (0, 1, 2, 4)
    with config.unlocked():
        config.teacher.options = {"std": 1e4, "image_type": "uint16", "multiple": 1}
        config.teacher.any_class_names = True
        config.terms = ConfigDict({"kl": configuration.term("pixelwise_kl")})
    result = kdjax.train(config, tmp_path / "run", data=bands_set())
    assert result.scores["val"].miou > 0


@needs_onnx
def test_label_reads_the_bands_of_a_file(tmp_path):
    weights = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)
    path = write_onnx(tmp_path / "five.onnx", weights=weights)
    (tmp_path / "in").mkdir()
    image = scene(0)["image"]
    np.save(tmp_path / "in" / "a.npy", image)
    found = kdjax.label(
        path,
        tmp_path / "in",
        tmp_path / "out",
        options={"std": 1e4, "image_type": "uint16", "multiple": 1},
    )
    expected = image.astype(np.float32) / 1e4 @ weights.T
    np.testing.assert_allclose(np.load(found.scores / "a.npy"), expected, rtol=2e-3, atol=2e-3)


def test_weights_of_photos_are_spread_over_the_bands():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 8)).astype(np.float32)
    trained = {"stem": {"kernel": kernel}, "other": {"kernel": np.ones((3, 3, 8, 3))}}
    fresh = {"stem": {"kernel": np.zeros((3, 3, 5, 8))}, "other": {"kernel": np.ones((3, 3, 8, 3))}}
    bands = Bands("uint8", (0.0,) * 5, (1.0,) * 5, (3, 1, 0))
    found = _spread(fresh, trained, bands)
    spread = np.asarray(found["stem"]["kernel"])
    for color, band in enumerate(bands.rgb):
        np.testing.assert_allclose(spread[:, :, band], kernel[:, :, color] * 0.6, rtol=1e-6)
    np.testing.assert_allclose(spread[:, :, 2], kernel.mean(2) * 0.6, rtol=1e-6)
    # An image with one value in all bands gives the same sums as before.
    np.testing.assert_allclose(spread.sum(2), kernel.sum(2), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found["other"]["kernel"], trained["other"]["kernel"])
    gray = Bands("uint8", (0.0,), (1.0,), (0, 0, 0))
    fresh = {"stem": {"kernel": np.zeros((3, 3, 1, 8))}, "other": fresh["other"]}
    found = np.asarray(_spread(fresh, trained, gray)["stem"]["kernel"])
    np.testing.assert_allclose(found[:, :, 0], kernel.sum(2), rtol=1e-5, atol=1e-6)


def test_a_backbone_of_photos_starts_a_student_of_bands(tmp_path):
    path = save_teacher(tmp_path / "photos")
    config = make_config()
    config.student.width, config.student.backbone = 4, path
    bands = bands_set().bands
    _, variables, info = make_student(config, NAMES, np.array(PALETTE), bands)
    stems = [
        jax.tree.leaves(tree["params"]["backbone"]["stem"]["conv"])[0]
        for tree in (variables, serialization.load(path)[1])
    ]
    assert [stem.shape for stem in stems] == [(3, 3, 5, 4), (3, 3, 3, 4)]
    np.testing.assert_allclose(stems[0].sum(2), stems[1].sum(2), rtol=1e-4, atol=1e-5)
    assert info.preprocessing.mean == bands.mean
    config.student.checkpoint, config.student.backbone = path, ""
    with pytest.raises(UserError, match="takes images of 3 bands; these have 5: name it in config"):
        make_student(config, NAMES, np.array(PALETTE), bands)
