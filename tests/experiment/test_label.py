"""`kdjax label`, and students that learn from a teacher alone."""

import json
import re
from types import SimpleNamespace
from typing import Any

import made_up_files
import numpy as np
import pytest
import tiny
from flax import nnx
from ml_collections import ConfigDict
from PIL import Image

import kdjax
from kdjax import config as configuration
from kdjax.data import sets
from kdjax.data.run_data import RunData
from kdjax.evaluation.evaluator import TrainedNetwork
from kdjax.models import NNXNetwork, serialization
from kdjax.teachers.precomputed_logits import PrecomputedLogits
from kdjax.training.sharding import Placement
from kdjax.utils import config_file
from kdjax.utils.errors import UserError

NAMES = ("red", "green", "blue")
PALETTE = ((250, 10, 20), (10, 240, 30), (20, 30, 230))


def save_network(path, seed):
    net = tiny.create(num_classes=3, width=4, auxiliary=False, dtype="float32", rngs=nnx.Rngs(seed))
    info = serialization.NetworkInfo("tiny", 3, 4, False, NAMES, PALETTE)
    serialization.save(path, info, NNXNetwork.of(net)[1])
    return str(path)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_network(tmp_path_factory.mktemp("teacher"), 2)


@pytest.fixture
def photos(tmp_path):
    """Makes ten photos of two sizes, some in a folder of their own."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for index in range(10):
        size = (32, 48) if index % 2 else (40, 32)
        blocks = generator.integers(0, 256, (size[0] // 8, size[1] // 8, 3), np.uint8)
        place = folder / "more" if index > 7 else folder
        Image.fromarray(blocks.repeat(8, 0).repeat(8, 1)).save(place / f"{index}.png")
    return folder


def pixels_of(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_scores_masks_and_overlays_are_those_of_the_teacher(teacher, photos, tmp_path):
    found = kdjax.label(teacher, photos, tmp_path / "out", masks=True, overlays=2)
    assert (found.images, found.new) == (10, 10)
    network = TrainedNetwork.load(teacher)
    for path in photos.rglob("*.png"):
        name = path.relative_to(photos).with_suffix("")
        scores = np.load(found.scores / f"{name}.npy")
        pixels = pixels_of(path)
        assert scores.dtype == np.float16
        assert scores.shape == (-(-pixels.shape[0] // 8), -(-pixels.shape[1] // 8), 3)
        label = pixels_of(tmp_path / "out" / "labels" / f"{name}.png")
        np.testing.assert_array_equal(label, network.predict(pixels))
    assert len([*(tmp_path / "out" / "overlays").rglob("*.png")]) == 2
    assert (tmp_path / "out" / "classes.txt").read_text() == "red\ngreen\nblue\n"


def test_the_output_is_a_teacher_and_a_labeled_set(teacher, photos, tmp_path):
    found = kdjax.label(teacher, photos, tmp_path / "out", masks=True)
    sets.prepare("folder", tmp_path / "data", source=tmp_path / "out", val_share=0.3)
    config = configuration.default()
    config.data.update({"name": "folder", "data_dir": str(tmp_path / "data")})
    images = RunData(config.data)
    assert images.class_names == NAMES
    assert PrecomputedLogits(str(found.scores), images, 0).num_classes == 3


def test_pixels_of_low_confidence_are_ignored(teacher, photos, tmp_path):
    kdjax.label(teacher, photos, tmp_path / "all", masks=True)
    kdjax.label(teacher, photos, tmp_path / "sure", masks=True, min_confidence=0.5)
    unsure = 0
    for path in (tmp_path / "sure" / "labels").rglob("*.png"):
        sure = pixels_of(path)
        kept = sure != 255
        unsure += (~kept).sum()
        label = pixels_of(tmp_path / "all" / "labels" / path.relative_to(tmp_path / "sure/labels"))
        np.testing.assert_array_equal(sure[kept], label[kept])
    assert unsure > 0


def test_an_interrupted_call_continues(teacher, photos, tmp_path):
    kdjax.label(teacher, photos, tmp_path / "out")
    (tmp_path / "out" / "scores" / "3.npy").unlink()
    kept = tmp_path / "out" / "scores" / "4.npy"
    kept.write_bytes(b"kept")
    assert kdjax.label(teacher, photos, tmp_path / "out").new == 1
    assert kept.read_bytes() == b"kept"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_confidence": 0.5}, r"another call \(min_confidence 0.0 there, 0.5 now\)"),
        ({"masks": True}, r"another call \(masks False there, True now\)"),
        ({"teacher": "other"}, r"another call \(fingerprint \w+ there, \w+ now\)"),
        ({"images": "."}, r"another call \(images .* there"),
        ({"output": "photos"}, r"--output .*photos holds other files; name a new folder"),
        ({"min_confidence": 2.0}, "min_confidence is 2.0; it must be"),
        ({"images": "nothing"}, "--images .*nothing is no folder with images"),
        ({"teacher": "nothing"}, "nothing: no network checkpoint here"),
    ],
)
def test_mistakes_are_one_line(teacher, photos, tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    call = {"teacher": teacher, "images": "photos", "output": "out"}
    kdjax.label(**call)
    save_network(tmp_path / "other", 3)
    with pytest.raises(UserError, match=message):
        kdjax.label(**{**call, **change})


def test_a_damaged_photo_is_named(teacher, photos, tmp_path):
    (photos / "5.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"5\.png"):
        kdjax.label(teacher, photos, tmp_path / "out")


@pytest.fixture
def unlabelled(teacher, photos, tmp_path):
    """Returns the config of a student that learns from a teacher alone."""
    sets.prepare("folder", tmp_path / "data", source=photos, unlabelled=True, val_share=0.3)
    config = configuration.default()
    config.steps = config.eval_every = 3
    config.log_every = 1
    config.data.update({"name": "folder", "data_dir": str(tmp_path / "data")})
    config.data.update({"batch_size": 8, "eval_batch_size": 8, "crop_size": (32, 32)})
    config.data.max_class_share = 1.0
    config.student.update(configuration.network("tiny", width=4))
    config.student.auxiliary = False
    config.loss.cross_entropy = config.loss.auxiliary = 0.0
    config.teacher.checkpoint = teacher
    with config.unlocked():
        config.terms = ConfigDict({"kl": configuration.term("pixelwise_kl")})
    return config


def test_a_student_without_labels_reports_its_agreement(unlabelled, teacher, tmp_path, capsys):
    result = kdjax.train(unlabelled, tmp_path / "run")
    said = re.search(
        r"val mIoU against the teacher's labels ([\d.]+) %, agreement with the teacher ([\d.]+) %",
        capsys.readouterr().out,
    )
    assert said
    images = RunData(unlabelled.data, classes=lambda: (NAMES, np.array(PALETTE)))
    network, alike, pixels = TrainedNetwork.load(teacher), 0, 0
    student = result.student
    for example in images.spread_examples("val", 9):
        same = student.predict(example["image"]) == network.predict(example["image"])
        alike, pixels = alike + same.sum(), pixels + same.size
    assert float(said[2]) == pytest.approx(100 * alike / pixels, abs=0.01)
    assert student.info.class_names == NAMES
    text = result.files.report.read_text()
    assert "against the teacher&#39;s labels" in text
    lines = [json.loads(line) for line in result.files.metrics.read_text().splitlines()]
    assert all(line.get("train/cross_entropy", 0) == 0 for line in lines)
    assert any("val/agreement_miou" in line for line in lines)
    assert not any("val/miou" in line for line in lines)


@made_up_files.needs_onnx
def test_a_binary_teacher_teaches_a_binary_student(unlabelled, tmp_path, capsys):
    unlabelled.teacher.checkpoint = made_up_files.write_onnx(
        tmp_path / "a.onnx",
        weights=np.array([[0.05, -0.02, -0.03]], np.float32),
        last=[("Sigmoid", {})],
    )
    with unlabelled.unlocked():
        unlabelled.teacher.options.classes = ("background", "dirt")
    result = kdjax.train(unlabelled, tmp_path / "run")
    assert result.student.info.class_names == ("background", "dirt")
    share = f"IoU of dirt {100 * result.scores['val'].iou['dirt']:.2f} %"
    assert share in repr(result)
    # One line for the evaluation at the last step, and one at the end.
    assert capsys.readouterr().out.count(share) == 2
    assert [line["step"] for line in result.history if "val/iou_dirt" in line] == [3]


def test_a_labeled_set_scores_a_student_without_labels(unlabelled, teacher, tmp_path, capsys):
    """The labels are the teacher's own, so the teacher is right everywhere."""
    kdjax.label(teacher, tmp_path / "photos", tmp_path / "labeled", masks=True)
    sets.prepare("folder", tmp_path / "more", source=tmp_path / "labeled", test_share=1.0)
    unlabelled.data.test_split = "test"
    unlabelled.data.test_data_dir = str(tmp_path / "more")
    result = kdjax.train(unlabelled, tmp_path / "run")
    said = capsys.readouterr().out
    assert "val mIoU against the teacher's labels" in said
    assert re.search(r"test mIoU [\d.]+ %, pixel accuracy", said)
    scores = result.scores["test"]
    assert scores.pixel_accuracy == scores.agreement
    assert kdjax.evaluate(tmp_path / "run", split="test").miou == scores.miou

    unlabelled.data.test_split = "unknown"
    with pytest.raises(UserError, match=r'test_split is "unknown"; folder in .*more has'):
        kdjax.train(unlabelled, tmp_path / "other")


def test_the_labeled_set_must_have_the_teachers_classes(unlabelled, tmp_path):
    for kind, mode in (("images", "RGB"), ("labels", "L")):
        for split in ("train", "val", "test"):
            (tmp_path / "source" / kind / split).mkdir(parents=True)
            Image.new(mode, (32, 32)).save(tmp_path / "source" / kind / split / "a.png")
    (tmp_path / "source" / "classes.txt").write_text("red\ngreen\nviolet\n")
    sets.prepare("folder", tmp_path / "more", source=tmp_path / "source")
    unlabelled.data.test_split = "test"
    unlabelled.data.test_data_dir = str(tmp_path / "more")
    with pytest.raises(UserError, match=r"test_data_dir: its labels mean .*violet"):
        kdjax.train(unlabelled, tmp_path / "run")


def test_labels_are_no_part_of_a_run_without_labels(unlabelled, tmp_path):
    unlabelled.loss.cross_entropy = 1.0
    with pytest.raises(UserError, match=r"cross_entropy is 1\.0, but the images .* set it to 0"):
        kdjax.train(unlabelled, tmp_path / "run")
    unlabelled.teacher.checkpoint = ""
    with pytest.raises(UserError, match=r"has no labels to learn from .*from_teacher\.py"):
        kdjax.train(unlabelled, tmp_path / "run")


def test_from_teacher_chooses_from_the_photos(unlabelled, teacher, tmp_path, capsys):
    config: Any = config_file.read(f"configs/from_teacher.py:{tmp_path / 'data'},{teacher}")
    assert (config.loss.cross_entropy, config.data.max_class_share) == (0.0, 1.0)
    assert config.data.batch_size <= 8
    assert [*config.terms] == ["inter", "intra"]
    assert "no labels, mostly" in capsys.readouterr().out
    labeled = config_file.read(f"configs/from_teacher.py:{tmp_path / 'data'},{teacher},data/more")
    assert (labeled.data.test_split, labeled.data.test_data_dir) == ("test", "data/more")
    with pytest.raises(UserError, match=r"takes two or three words, as from_teacher\.py:data/mine"):
        config_file.read(f"configs/from_teacher.py:{tmp_path / 'data'}")


def test_images_at_once_are_shared_by_the_devices(teacher, photos, tmp_path, monkeypatch):
    class Two(Placement):
        def __init__(self):
            super().__init__()
            self.mesh = SimpleNamespace(size=2)

    monkeypatch.setattr("kdjax.experiment.label.Placement", Two)
    with pytest.raises(
        UserError, match="--batch_size is 3; it must be a multiple of the 2 devices"
    ):
        kdjax.label(teacher, photos, tmp_path / "labeled", batch_size=3)
    assert not (tmp_path / "labeled").exists()
