"""A teacher in an ONNX file: in every step, in the cache, evaluated, and predicting."""

import json
import re

import numpy as np
import pytest
from made_up_files import needs_onnx, write_onnx
from ml_collections import ConfigDict
from PIL import Image

import kdjax
from kdjax import config as configuration
from kdjax.data import sets
from kdjax.experiment.run import Run, train_run
from kdjax.experiment.workdir import Workdir
from kdjax.utils.errors import UserError

pytestmark = needs_onnx
# The score of "bright": how far the red of a pixel lies above the middle.
RED = np.array([[4.0, 0.0, 0.0]], np.float32)
OPTIONS = {"classes": ("bright",), "channels": "RGB", "mean": 127.5, "std": 127.5, "multiple": 1}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Prepares images of two classes, which the red of a pixel tells apart."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for split, count in {"train": 8, "val": 2}.items():
        for index in range(count):
            image = generator.integers(0, 256, (24, 32, 3)).astype(np.uint8)
            for kind, pixels in (("images", image), ("labels", (image[..., 0] > 127))):
                path = source / kind / split / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    (source / "classes.txt").write_text("background\nbright\n")
    sets.prepare("folder", target, source=source)
    return str(target)


@pytest.fixture
def config(data_dir, tmp_path):
    config = configuration.default()
    config.steps = 2
    config.log_every = 1
    config.data.update({"name": "folder", "data_dir": data_dir, "batch_size": 8})
    config.data.update({"eval_batch_size": 8, "crop_size": (24, 32), "scale_range": (1.0, 1.0)})
    config.data.update({"max_class_share": 1.0, "flip": False})
    config.student.update(configuration.network("tiny", width=4))
    config.teacher.checkpoint = write_onnx(
        tmp_path / "net.onnx", weights=RED, last=[("Sigmoid", {})]
    )
    config.teacher.view = "clean"
    config.teacher.min_miou = 0.9
    config.teacher.options = OPTIONS
    with config.unlocked():
        config.terms = ConfigDict({"pixelwise_kl": configuration.term("pixelwise_kl")})
    return config


def train(config, workdir):
    """Trains without drawing a report."""
    train_run(Run(configuration.read(config), Workdir(workdir), "test", "student", "distilled"))


def distillation_losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["train/pixelwise_kl"] for line in lines if "train/pixelwise_kl" in line]


def test_a_file_teaches_in_every_step_and_from_the_cache(config, tmp_path, capsys):
    train(config, tmp_path / "live")
    said = capsys.readouterr().out
    assert said.count("is read with layout=NCHW (read)") == 1
    assert re.search(r"teacher net\.onnx \(weights .* mIoU 100.00 %, IoU of bright 100.00 %", said)
    assert re.search(r"val mIoU .* %, pixel accuracy .* %, IoU of bright \d+\.\d\d %", said)
    live = distillation_losses(tmp_path / "live")
    assert len(live) == 2
    config.teacher.cache = str(tmp_path / "cache")
    train(config, tmp_path / "cached")
    np.testing.assert_allclose(distillation_losses(tmp_path / "cached"), live, rtol=0.01)
    # Other options are another teacher.
    config.teacher.options.channels = "BGR"
    config.teacher.min_miou = 0.0
    with pytest.raises(UserError, match="is of another run"):
        train(config, tmp_path / "other")


def test_a_teacher_of_wrong_channels_or_classes_is_refused(config, tmp_path):
    config.teacher.options.channels = "BGR"
    with pytest.raises(UserError, match=r"below config\.teacher\.min_miou 0\.9"):
        train(config, tmp_path / "run")
    config.teacher.options.channels = "RGB"
    config.teacher.options.classes = ("dark",)
    with pytest.raises(UserError, match=r'scores other classes .*class 1 is "dark" there'):
        train(config, tmp_path / "run")
    config.teacher.dtype = "bfloat16"
    with pytest.raises(UserError, match="kdjax cannot change it to bfloat16"):
        train(config, tmp_path / "run")


def test_a_file_is_evaluated_and_predicts(config, tmp_path):
    config.steps = 1
    train(config, tmp_path / "run")
    found = kdjax.evaluate(tmp_path / "run", checkpoint=config.teacher.checkpoint)
    assert found.miou > 0.99
    assert list(found.iou) == ["background", "bright"]
    moved = write_onnx(tmp_path / "moved.onnx", weights=RED)
    with pytest.raises(UserError, match=r'class 1 is "object" there and "bright" in the data'):
        kdjax.evaluate(tmp_path / "run", checkpoint=moved)
    again = kdjax.evaluate(tmp_path / "run", checkpoint=moved, options=OPTIONS)
    assert again.miou == found.miou
    image = np.zeros((20, 30, 3), np.uint8)
    image[:, 10:, 0] = 255
    Image.fromarray(image).save(tmp_path / "photo.png")
    kdjax.predict(moved, str(tmp_path / "photo.png"), str(tmp_path / "out"), options=OPTIONS)
    label = np.asarray(Image.open(tmp_path / "out" / "labels" / "photo.png"))
    np.testing.assert_array_equal(label, image[..., 0] // 255)


def test_a_file_is_no_student(config, tmp_path):
    for key in ("checkpoint", "backbone"):
        config.student.update({"checkpoint": "", "backbone": ""})
        config.student[key] = config.teacher.checkpoint
        with pytest.raises(UserError, match=rf"config\.student\.{key} is .*cannot be trained"):
            train(config, tmp_path / "run")
