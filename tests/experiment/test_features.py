"""Networks without class scores: as teachers, as students, and where classes are predicted."""

import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import pytest
import thorough
import tiny
from flax import nnx
from ml_collections import ConfigDict
from PIL import Image

import kdjax
from kdjax import config as configuration
from kdjax import models
from kdjax.config import extra_set, term
from kdjax.data import sets
from kdjax.evaluation.evaluator import TrainedNetwork
from kdjax.models import FeatureExtractor, NNXNetwork, maps_of, scores_of, serialization, vit
from kdjax.models.outputs import MEAN_ONLY
from kdjax.models.serialization import NetworkInfo
from kdjax.utils import config_file
from kdjax.utils.errors import UserError


def extractor(*, num_classes, width, dtype, rngs):
    del num_classes
    return FeatureExtractor(tiny.Backbone(width, dtype=dtype, rngs=rngs), dtype=dtype)


NAME = "test_features:extractor"


class Callback:
    """A feature extractor of another framework, without variables."""

    def __init__(self, factor):
        self.factor = factor

    def init(self, key, images):
        return {"params": {}, "state": {}}

    def apply(self, variables, images, *, train, key):
        cells = images[:, ::8, ::8]
        shape = jax.ShapeDtypeStruct(cells.shape, cells.dtype)
        return {"deep": jax.pure_callback(lambda x: self.factor * x, shape, cells)}, variables


by_callback = Callback(np.float32(2))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Saves a feature extractor with eight channels in stage 4."""
    net = extractor(num_classes=0, width=4, dtype=np.dtype("float32"), rngs=nnx.Rngs(1))
    path = tmp_path_factory.mktemp("extractor")
    serialization.save(path, NetworkInfo(NAME, 0, 4, False, (), ()), NNXNetwork.of(net)[1])
    return str(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Prepares photos without labels, and the same with labels of two classes."""
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (root / "source" / kind).mkdir(parents=True)
    for index in range(10):
        blocks = generator.integers(0, 256, (5, 6, 3), np.uint8)
        pixels = blocks.repeat(8, 0).repeat(8, 1)
        Image.fromarray(pixels).save(root / "source" / "images" / f"{index}.png")
        label = (pixels[..., 0] > 127).astype(np.uint8)
        Image.fromarray(label).save(root / "source" / "labels" / f"{index}.png")
    (root / "source" / "classes.txt").write_text("dark\nbright\n")
    sets.prepare(
        "folder",
        root / "unlabelled",
        source=root / "source" / "images",
        unlabelled=True,
        val_share=0.3,
    )
    sets.prepare("folder", root / "labelled", source=root / "source", val_share=0.3)
    return root


def config_of(photos, kind, teacher, student="tiny"):
    config = configuration.default()
    config.steps, config.eval_every, config.log_every = 4, 2, 1
    config.data.update({"name": "folder", "data_dir": str(photos / kind)})
    config.data.update({"batch_size": 8, "eval_batch_size": 8, "crop_size": (32, 32)})
    config.data.max_class_share = 1.0
    config.student.update(configuration.network(student, width=4))
    config.student.auxiliary = False
    config.loss.auxiliary = 0.0
    config.teacher.checkpoint = teacher
    with config.unlocked():
        config.terms = ConfigDict(
            {"l2": term("l2", student="stage4", teacher="stage4", adapter="never")}
        )
    return config


def backbone_config(photos, teacher, kind="unlabelled"):
    config = config_of(photos, kind, teacher, NAME)
    config.loss.cross_entropy = 0.0
    return config


@pytest.mark.parametrize("cached", thorough.after(1, [True, False]))
def test_features_teach_a_student_that_learns_labels(photos, teacher, tmp_path, cached):
    config = config_of(photos, "labelled", teacher)
    if cached:
        config.teacher.cache = str(tmp_path / "cache")
    result = kdjax.train(config, tmp_path / "run")
    assert result.scores["val"].agreement is None
    assert result.history[0]["train/l2"] > 0
    assert result.student.info.class_names == ("dark", "bright")


@pytest.mark.parametrize("name", thorough.after(1, ["dinov3_s", "dinov2_s_reg"]))
def test_a_vision_transformer_teaches_ten_steps(photos, tmp_path, monkeypatch, name):
    small = vit.VARIANTS[name]._replace(heads=2, depth=4, grid=min(vit.VARIANTS[name].grid, 5))
    monkeypatch.setitem(vit.VARIANTS, name, small)
    net = models.create(name, num_classes=0, width=8, rngs=nnx.Rngs(1))
    info = NetworkInfo(name, 0, 8, False, (), ())
    serialization.save(tmp_path / "vit", info, NNXNetwork.of(net)[1])
    config = config_of(photos, "labelled", str(tmp_path / "vit"))
    config.teacher.name, config.teacher.width = name, 8
    config.steps, config.eval_every = 10, 10
    with config.unlocked():
        config.terms.l2 = term("l2", student="stage4", teacher="stage4")
    losses = [
        line["train/l2"]
        for line in kdjax.train(config, tmp_path / "run").history
        if "train/l2" in line
    ]
    assert len(losses) == 10
    assert losses[-1] < losses[0]


def test_a_comparison_has_no_row_for_a_teacher_without_scores(photos, teacher, tmp_path):
    config = config_of(photos, "labelled", teacher)
    with config.unlocked():
        config.compare.methods = ConfigDict({"plain": {}, "l2": config.terms.to_dict()})
        config.terms = ConfigDict()
    config.compare.equal_time = False
    kdjax.compare(config, tmp_path / "run")
    rows = (tmp_path / "run" / "results.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["plain student", "l2"]


def test_a_backbone_matches_the_teacher_on_photos_alone(photos, teacher, tmp_path, capsys):
    result = kdjax.train(backbone_config(photos, teacher), tmp_path / "run")
    assert result.scores == {}
    student, own = result.student, TrainedNetwork.load(teacher)
    assert (student.info.num_classes, student.info.class_names) == (0, ())

    def stage4(network, pixels):
        images = network.info.preprocessing(pixels)
        output, _ = network.network.apply(network.variables, images, train=False, key=None)
        return maps_of(output)["stage4"]

    data = sets.open_set("folder", str(photos / "unlabelled"), asked_by="the test")
    examples = [*data.records("val").decoded(range(3))]
    distances = [
        np.square(stage4(student, pixels) - stage4(own, pixels)).mean()
        for pixels in (example["image"][None] for example in examples)
    ]
    expected = 10 * np.mean(distances)
    assert result.losses == {"val": pytest.approx(expected, rel=1e-4)}
    losses = [line["val/loss"] for line in result.history if "val/loss" in line]
    assert len(losses) == 2
    assert losses[-1] == pytest.approx(expected, rel=1e-4)
    assert f"val loss {expected:.4f}" in capsys.readouterr().out
    assert "train/cross_entropy" not in result.history[0]
    assert "loss on val" in result.figures()
    assert f"loss {expected:.4f} on val" in result.files.report.read_text()
    assert f"val loss {expected:.4f}" in repr(result)
    # A finished run stays as it is.
    again = kdjax.train(backbone_config(photos, teacher), tmp_path / "run")
    assert again.losses == result.losses
    assert "loss" in result._repr_html_()


@pytest.mark.thorough
def test_the_best_backbone_has_the_lowest_loss(photos, teacher, tmp_path):
    config = backbone_config(photos, teacher)
    config.export, config.eval_every = "best", 1
    # The loss grows from step to step.
    config.optimizer.learning_rate = 1.0
    config.optimizer.poly_power = 0.0
    result = kdjax.train(config, tmp_path / "run")
    losses = [line["val/loss"] for line in result.history if "val/loss" in line]
    assert losses[-1] > min(losses)
    assert result.losses["val"] == pytest.approx(min(losses), rel=1e-4)


def test_a_pretrained_backbone_begins_a_student(photos, teacher, tmp_path):
    run = kdjax.train(backbone_config(photos, teacher, "labelled"), tmp_path / "backbone")
    config = config_of(photos, "labelled", "")
    config.steps = 1
    config.optimizer.learning_rate = 1e-12
    config.student.backbone = str(tmp_path / "backbone")
    with config.unlocked():
        config.terms = ConfigDict()
    student = kdjax.train(config, tmp_path / "run").student
    jax.tree.map(
        lambda new, old: np.testing.assert_allclose(new, old, atol=1e-6),
        student.variables["params"]["backbone"],
        run.student.variables["params"]["backbone"],
    )


@pytest.mark.thorough
def test_unlabelled_photos_join_labelled_ones(photos, teacher, tmp_path):
    config = config_of(photos, "labelled", teacher)
    with config.unlocked():
        more = extra_set("folder", data_dir=str(photos / "unlabelled"), labelled=False)
        config.data.mixture.more = more
    kdjax.train(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss.cross_entropy": 1.0}, r"has no class scores, only stage3, stage4, so no cross-ent"),
        ({"terms": {}}, r"has no class scores, so it needs config\.terms to learn from"),
        ({"teacher.min_miou": 0.5}, r"min_miou is 0\.5, but .* scores 0 classes and the data have"),
        ({"student.name": "tiny"}, r"tiny scores classes, and nothing teaches them: the images"),
        ({"terms.l2.teacher": "logits"}, r'the teacher has no map "logits"; it has stage3, stage4'),
        (
            {"terms": {"labels": term("isda_cross_entropy")}},
            r'student: the student has no map "logits"; it has stage3, stage4',
        ),
    ],
)
def test_mistakes_are_one_line(photos, teacher, tmp_path, change, message):
    kind = "labelled" if "loss.cross_entropy" in change or "terms" in change else "unlabelled"
    config = backbone_config(photos, teacher, kind)
    with config.unlocked():
        for key, value in change.items():
            config.update_from_flattened_dict({key: value})
            if key == "terms":
                config.terms = ConfigDict(value)
    with pytest.raises(UserError, match=message) as error:
        kdjax.train(config, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "config.json").exists()


def test_classes_are_not_predicted_from_features(photos, teacher, tmp_path):
    run = tmp_path / "run"
    kdjax.train(config_of(photos, "labelled", teacher), run)
    source = photos / "source" / "images"
    for call in (
        lambda: kdjax.evaluate(run, checkpoint=teacher),
        lambda: kdjax.predict(teacher, str(source), tmp_path / "out"),
        lambda: kdjax.label(teacher, source, tmp_path / "out"),
        lambda: kdjax.export(teacher, tmp_path / "out", "stablehlo", size=(32, 32)),
    ):
        with pytest.raises(UserError, match=r"has no class scores, only features; name a network"):
            call()
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r'no class scores \("logits"\), only stage3, stage4'):
        kdjax.load(teacher).predict(np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(UserError, match="no class scores"):
        scores_of({"stage4": np.zeros((1, 2, 2, 3))})


def test_a_callback_without_scores_is_identified_by_its_features():
    first = TrainedNetwork.load("test_features:by_callback").info
    by_callback.factor = np.float32(3)
    try:
        other = TrainedNetwork.load("test_features:by_callback").info
    finally:
        by_callback.factor = np.float32(2)
    assert (first.num_classes, first.class_names) == (0, ())
    assert first.fingerprint != other.fingerprint
    assert first.fingerprint == TrainedNetwork.load("test_features:by_callback").info.fingerprint


def test_several_networks_are_one_with_the_maps_of_all(teacher, tmp_path, monkeypatch):
    path = f"{teacher},test_features:by_callback"
    name = teacher.rpartition("/")[2]
    both, first = TrainedNetwork.load(path), TrainedNetwork.load(teacher)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 48, 3), np.uint8)

    def maps(network):
        images = network.info.preprocessing(pixels)
        return maps_of(network.network.apply(network.variables, images, train=False, key=None)[0])

    found, other = maps(both), maps(TrainedNetwork.load("test_features:by_callback"))
    assert {*found} == {f"{name}/stage3", f"{name}/stage4", "by_callback/deep"}
    np.testing.assert_allclose(found[f"{name}/stage4"], maps(first)["stage4"], rtol=1e-6)
    np.testing.assert_allclose(found["by_callback/deep"], other["deep"], rtol=1e-6)
    assert both.info.num_classes == 0
    assert both.info.fingerprint not in (first.info.fingerprint, "")
    monkeypatch.setattr(by_callback, "preprocessing", MEAN_ONLY, raising=False)
    assert TrainedNetwork.load(path).info.fingerprint != both.info.fingerprint
    folder = shutil.copytree(teacher, tmp_path / "one,two")
    assert TrainedNetwork.load(str(folder)).info.fingerprint == first.info.fingerprint
    for wrong in (f"{teacher},{teacher}/", f"{teacher},"):
        with pytest.raises(UserError, match="their last parts must differ, and none may be empty"):
            TrainedNetwork.load(wrong)


def pretrain(photos, words) -> Any:
    return config_file.read(f"configs/pretrain.py:{photos / 'unlabelled'},{words}")


def test_pretrain_trains_a_backbone_with_several_teachers(photos, teacher, tmp_path, capsys):
    name = teacher.rpartition("/")[2]
    config = pretrain(photos, f"{teacher},{teacher}/../{name}2,method=l2")
    assert "no labels, mostly 48 x 40 pixels" in capsys.readouterr().out
    other = pathlib.Path(teacher).parent / f"{name}2"
    shutil.copytree(teacher, other, dirs_exist_ok=True)
    config.student.update(configuration.network(NAME, width=4))
    config.student.backbone = ""
    config.data.batch_size = config.data.eval_batch_size = 8
    config.steps, config.optimizer.warmup_steps = 2, 0
    config.teacher.cache = str(tmp_path / "cache")
    result = kdjax.train(config, tmp_path / "run")
    terms = {f"train/{name}_stage4", f"train/{name}2_stage4"}
    assert terms <= result.history[0].keys()
    assert result.losses["val"] > 0


def test_words_of_pretrain(photos, teacher):
    for method, loss in (("phi_s", "standardized_l2"), ("nfd", "nfd"), ("cwd", "cwd")):
        config = pretrain(photos, f"{teacher},method={method},map=stage3")
        (entry,) = config.terms.values()
        assert (entry.loss, entry.student, entry.teacher) == (loss, "stage4", "stage3")
    assert pretrain(photos, teacher).student.name == "efficientnet_lite0"
    assert config.loss.cross_entropy == 0
    for words, message in (
        ("method=nfd", r"pretrain\.py takes two words or more, as pretrain\.py:data/mine,TEACHER"),
        ("a,methods=nfd", r'no option methods: .*"method"'),
        ("a,method=nfl", r'no method "nfl": .*"nfd"'),
    ):
        with pytest.raises(UserError, match=message):
            pretrain(photos, words)


def test_camvid_pretrain_matches_three_stages():
    config: Any = config_file.read("configs/camvid_pretrain.py:full")
    assert [*config.terms] == ["stage2", "stage3", "stage4"]
    assert config.data.data_dir == "data/camvid_full"
    with pytest.raises(UserError, match=r"camvid_pretrain\.py:whole: it takes half, full"):
        config_file.read("configs/camvid_pretrain.py:whole")
