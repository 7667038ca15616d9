"""Classes are compared by name wherever a network meets a data set."""

import re

import jax
import numpy as np
import pytest
import tiny_run
from ml_collections import ConfigDict
from own_networks import Plain

import kdjax
from kdjax import config as configuration
from kdjax import models
from kdjax.models.network import ReorderedClasses, maps_of
from kdjax.utils.classes import class_order
from kdjax.utils.errors import UserError

NAMES = ("a", "b", "c")
ORDER = (2, 0, 1)  # of the same classes in the other data set: c, a, b


def examples():
    generator = np.random.default_rng(0)
    for _ in range(8):
        label = np.zeros((24, 32), np.uint8)
        label[:, 10:20], label[:, 20:] = 1, 2
        image = np.stack([label * 60] * 3, -1) + generator.integers(0, 60, (24, 32, 3))
        yield {"image": image.astype(np.uint8), "label": label}


def dataset(names, numbers=range(3)):
    """The examples with labels that count the classes in another way."""
    found = [{**one, "label": np.array(numbers, np.uint8)[one["label"]]} for one in examples()]
    return kdjax.Dataset({"train": found, "val": found[:3]}, names)


SAME = dataset(NAMES)
# Class 0 is number 1 there, class 1 is number 2, and class 2 is number 0.
REORDERED = dataset([NAMES[index] for index in ORDER], np.argsort(ORDER))
OTHER = dataset(("a", "b", "d"))


def make_config(**teacher):
    config = tiny_run.get_config()
    config.steps = config.eval_every = 2
    config.checkpoint_every = 0
    config.data.batch_size = config.data.eval_batch_size = 8
    config.data.crop_size = (16, 16)
    with config.unlocked():
        config.terms = ConfigDict({"cwd": configuration.term("cwd")} if teacher else {})
    config.teacher.update(teacher)
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained") / "run"
    config = make_config()
    config.steps = config.eval_every = 20
    return workdir, kdjax.train(config, workdir, data=SAME)


def test_an_order_is_found_by_names_and_numbered_classes_have_none():
    assert class_order("abc", "abc") is None
    assert class_order("abc", "cab") == ORDER
    for numbered in (["class_0", "class_1", "class_2"], ["class 0", "class 1", "class 2"]):
        assert class_order(numbered, "cab") is class_order("cab", numbered) is None
    with pytest.raises(ValueError, match='class 2 is "c" there and "d" in the data'):
        class_order("abc", "abd")
    with pytest.raises(ValueError, match='class 0 is "a" there and "b" in the data'):
        class_order("aab", "baa")


def test_all_class_scores_are_reordered():
    network = models.make_network("tiny", num_classes=3, width=4)
    variables = network.init(jax.random.key(0), np.zeros((1, 16, 16, 3)))
    reordered, images = ReorderedClasses(network, ORDER), np.ones((2, 16, 16, 3), np.float32)
    key = jax.random.key(1)
    one, two = (
        maps_of(each.apply(variables, images, train=True, key=key)[0])
        for each in (network, reordered)
    )
    for name in ("logits", "aux_logits"):
        before, after = one[name], two[name]
        np.testing.assert_array_equal(after.logits, before.logits[..., ORDER])
        np.testing.assert_allclose(
            after.inputs @ after.kernel + after.bias, after.logits, rtol=1e-5, atol=1e-5
        )
    np.testing.assert_array_equal(two["stage4"], one["stage4"])
    plain, _ = ReorderedClasses(Plain(3), ORDER).apply(
        {"params": {"kernel": np.ones((2, 3, 3))}, "state": {"steps": 0}},
        images,
        train=False,
        key=None,
    )
    assert plain["logits"].shape == (2, 4, 4, 3)


def test_an_evaluation_on_reordered_classes_has_the_same_scores(trained, capsys):
    workdir, result = trained
    expected = result.scores["val"]
    assert len({round(iou, 6) for iou in expected.iou.values()}) > 1
    assert kdjax.evaluate(workdir, data=SAME).iou == expected.iou
    capsys.readouterr()
    assert kdjax.evaluate(workdir, data=REORDERED).iou == expected.iou
    said = f"{workdir} has the classes of the data in another order; its scores are reordered\n"
    assert capsys.readouterr().out == said
    # By numbers, each class is scored as another one.
    assert kdjax.evaluate(workdir, data=REORDERED, any_class_names=True).iou != expected.iou
    message = rf'{workdir} scores other .*class 2 is "c" there and "d" .*set any_class_names'
    with pytest.raises(UserError, match=message):
        kdjax.evaluate(workdir, data=OTHER)
    by_number = kdjax.evaluate(workdir, data=OTHER, any_class_names=True)
    assert [*by_number.iou.values()] == [*expected.iou.values()]


def test_an_exported_student_is_evaluated_by_names_too(trained, tmp_path):
    workdir, result = trained
    kdjax.export(workdir, tmp_path, ["stablehlo"], size=(24, 32))
    exported = tmp_path / "student.stablehlo"
    found = kdjax.evaluate(workdir, exported=exported, data=REORDERED)
    assert found.iou == pytest.approx(result.scores["val"].iou)
    with pytest.raises(UserError, match=r"stablehlo scores other classes .* set any_class_names"):
        kdjax.evaluate(workdir, exported=exported, data=OTHER)


@pytest.mark.parametrize("cached", [False, True])
def test_a_teacher_teaches_by_names(trained, tmp_path, capsys, cached):
    workdir, result = trained
    config = make_config(checkpoint=str(workdir))
    if cached:
        config.teacher.cache = str(tmp_path / "cache")
    with pytest.raises(UserError, match=r'"c" there and "d" .*set config.teacher.any_class_names'):
        kdjax.train(config, tmp_path / "other", data=OTHER)
    assert not (tmp_path / "other").exists()
    capsys.readouterr()
    kdjax.train(config, tmp_path / "run", data=REORDERED)
    said = capsys.readouterr().out
    assert said.count("in another order; its scores are reordered") == 1
    teacher = re.search(r"teacher tiny .* has val mIoU ([\d.]+) %", said)
    assert teacher
    assert float(teacher[1]) == pytest.approx(100 * result.scores["val"].miou, abs=0.01)
    if cached:
        # The cache does not serve the same teacher on classes in the order of the teacher.
        with pytest.raises(UserError, match=r"another run \(teacher .*'class_order': \[2, 0, 1\]"):
            kdjax.train(config, tmp_path / "same", data=SAME)


def test_a_student_goes_on_with_the_classes_that_it_had(trained, tmp_path):
    config = make_config()
    config.student.checkpoint = str(trained[0])
    for data in (OTHER, REORDERED):
        with pytest.raises(UserError, match=r"config\.student\.any_class_names to True") as error:
            kdjax.train(config, tmp_path / "run", data=data)
        assert "config.student.backbone" in str(error.value)
    config.student.any_class_names = True
    assert kdjax.train(config, tmp_path / "run", data=OTHER).student.info.class_names[2] == "d"
