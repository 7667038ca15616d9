"""The functions that the commands call: what they take, refuse and return."""

import ast
import json
import pathlib
import re
import shutil
import sys
import types
import typing
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import own_networks
import pytest
import tiny_run
from ml_collections import ConfigDict
from PIL import Image

import kdjax
from kdjax import config as configuration
from kdjax.data import sets
from kdjax.evaluation.evaluator import TrainedNetwork
from kdjax.experiment.workdir import Workdir
from kdjax.reporting import writers
from kdjax.utils.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Recorder:
    """A writer of a user's own."""

    def __init__(self):
        self.logged, self.pictures = [], []

    def scalars(self, step, values):
        self.logged.append((step, dict(values)))

    def images(self, step, images):
        self.pictures += images.values()


def tiny_config(data_dir):
    config = tiny_run.get_config()
    config.steps, config.eval_every, config.checkpoint_every = 4, 2, 0
    config.data.data_dir = str(data_dir)
    return config


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("data")
    tiny_run.write_images(source)
    sets.prepare("folder", target, source=source)
    return target


@pytest.fixture
def config(data_dir):
    return tiny_config(data_dir)


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
    """A run that was trained in a thread, and what it told a writer."""
    workdir, writer, given = tmp_path_factory.mktemp("run"), Recorder(), tiny_config(data_dir)

    def train():
        return kdjax.train(given, workdir, writers=[writer])

    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(train).result()
    return workdir, result, writer


def test_a_run_returns_its_scores_its_history_and_its_student(trained):
    workdir, result, writer = trained
    stored = json.loads((workdir / "result.json").read_text())
    scores = result.scores["val"]
    assert scores.miou == stored["scores"]["val"]["miou"]
    assert [*scores.iou.values()] == stored["scores"]["val"]["iou"]
    assert [*scores.iou] == ["class_0", "class_1", "class_2"]
    assert [line["step"] for line in result.history if "train/loss" in line] == [1, 2, 3, 4]
    assert result.student.info.fingerprint
    assert result.to_dict() == {"workdir": str(workdir), **stored}
    assert f"val mIoU {100 * scores.miou:.2f} %" in repr(result)
    # A writer of one's own is told what the workdir's are.
    assert [{"step": step, **values} for step, values in writer.logged] == result.history
    assert writer.pictures[0].dtype == np.uint8


def test_a_run_shows_its_scores_its_curves_and_a_picture(trained):
    workdir, result, _ = trained
    charts = result.figures()
    assert [*charts][:2] == ["mIoU on val (%)", "loss"]
    assert {"augmented", "IoU by class (%)"} <= charts.keys()
    page = result._repr_html_()
    assert f"{100 * result.scores['val'].miou:.2f}" in page
    assert page.count("<svg") == 2
    assert page.count("data:image/png;base64,") == 1
    with Image.open(workdir / "examples.png") as picture:
        assert picture.width > picture.height / 4  # image, label and student in each of four rows


def test_a_teacher_other_than_described_is_refused(trained, config, tmp_path):
    workdir = str(trained[0])

    def fails(message, **teacher):
        with config.unlocked():
            config.teacher.update({"checkpoint": workdir, "name": "", **teacher})
        with pytest.raises(UserError, match=message):
            kdjax.train(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    with config.unlocked():
        config.terms = ConfigDict({"cwd": configuration.term("cwd")})
    options = {"kernel": 5}
    fails(r"config.teacher.options is {'kernel': 5}, but .* holds {}", options=options)
    with config.unlocked():
        config.teacher.options = ConfigDict()
        config.terms.cwd.update({"student": "head", "teacher": "head"})
    # Its features would serve, and its classes are others.
    config.teacher.name = "own_networks:Plain"
    own = "own_networks:five_classes"
    fails(
        r"min_miou is 0.5, but own_.* scores 5 classes and the data have 3, .* set min_miou to 0",
        checkpoint=own,
        min_miou=0.5,
    )


def test_an_evaluation_needs_neither_the_devices_nor_the_batch_of_the_run(
    trained, config, tmp_path, monkeypatch
):
    workdir, result, _ = trained
    stored = json.loads((workdir / "config.json").read_text())
    stored["mesh"] |= {"data": 3, "fsdp": 5}
    stored["data"]["eval_batch_size"] = 5
    shutil.copytree(workdir / "student", tmp_path / "student")
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert kdjax.evaluate(tmp_path).miou == pytest.approx(result.scores["val"].miou)
    # Each network computes in the dtype that it has in the run.
    computed, original = [], TrainedNetwork.load

    def load(path, *, dtype="float32", **options):
        computed.append(dtype)
        return original(path, dtype=dtype, **options)

    monkeypatch.setattr(TrainedNetwork, "load", load)
    stored["student"]["dtype"] = "bfloat16"
    stored["teacher"] |= {"dtype": "bfloat16", "checkpoint": str(workdir)}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    for checkpoint in (None, workdir, workdir / "student"):
        kdjax.evaluate(tmp_path, checkpoint=checkpoint)
    assert computed == ["bfloat16", "bfloat16", "float32"]


def test_a_finished_run_is_returned_at_once(trained, config):
    workdir, result, _ = trained
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    writer = Recorder()
    again = kdjax.train(config, str(workdir), writers=[writer])
    assert again.to_dict() == result.to_dict()
    assert not writer.logged
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def test_the_evaluation_of_a_run_returns_its_scores(trained):
    workdir, result, _ = trained
    found = kdjax.evaluate(workdir)
    assert found.to_dict() | {"agreement": None} == {
        "split": "val",
        **result.scores["val"].to_dict(),
    }
    assert found.shapes == 1
    *_, total = str(found).splitlines()
    assert total.startswith(f"val: mIoU {100 * found.miou:.2f} %, pixel accuracy ")
    assert "<th>class_2</th>" in found._repr_html_()
    with pytest.raises(UserError, match='--mode is "slid"; it must be whole or slide'):
        kdjax.evaluate(workdir, mode="slid")
    with pytest.raises(UserError, match=r"--window is \(8,\); give height and width"):
        kdjax.evaluate(workdir, mode="slide", window=(8,))
    with pytest.raises(UserError, match="no run here"):
        kdjax.evaluate(workdir / "student")


def test_an_evaluation_names_what_to_look_at(trained, tmp_path):
    """With itself as the teacher, both networks agree wherever the student is wrong."""
    workdir, result, _ = trained
    plain = kdjax.evaluate(workdir)
    assert (plain.boundary_iou, plain.worst, plain.disputed) == ({}, (), ())
    shutil.copytree(workdir, tmp_path / "run")
    config = json.loads((workdir / "config.json").read_text())
    config["teacher"]["checkpoint"] = str(workdir)
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    found = kdjax.evaluate(tmp_path / "run", boundaries=True, pictures=tmp_path / "pictures")
    assert (found.miou, found.iou) == (plain.miou, plain.iou)
    assert len(found.worst) == len(found.disputed) == 3
    assert sorted(name.partition(":")[0] for name in found.worst) == ["a0", "b1", "b2"]
    wrong = [100 * (1 - found.pixel_accuracy)]
    shares = [float(line.split()[-2]) for line in found.disputed]
    assert sum(shares) / 3 == pytest.approx(*wrong, abs=0.1)
    assert shares == sorted(shares, reverse=True)
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {
        f"{kind}_{number}.png" for kind in ("worst", "disputed") for number in (1, 2, 3)
    }
    with Image.open(tmp_path / "pictures" / "worst_1.png") as picture:
        assert picture.size == (4 * 32 + 3 * 4, 24)  # image, label, teacher, student
    assert [*found.boundary_iou] == [*found.boundary_f1] == [*found.iou]
    lines = str(found).splitlines()
    assert lines[0].split() == ["IoU", "boundary", "F1"]
    assert "mean Boundary IoU" in lines[4]
    assert lines[5] == "lowest IoU:"
    assert "labels to check:" in lines
    assert found.to_dict()["boundary_f1"].keys() == found.iou.keys()
    # The result and the report of the run itself name the same images.
    stored = result.to_dict()["inspected"]["val"]
    assert [entry["name"] for entry in stored["worst"]] == [
        line.partition(":")[0] for line in found.worst
    ]
    report = (workdir / "report.html").read_text()
    assert "<h2>Lowest IoU</h2>" in report
    assert "Labels to check" not in report  # without a teacher


def test_boundaries_are_measured_if_the_config_asks(config, tmp_path):
    config.steps, config.boundaries = 2, True
    scores = kdjax.train(config, tmp_path).scores["val"]
    assert [*scores.boundary_iou] == [*scores.iou]
    report = (tmp_path / "report.html").read_text()
    assert "Boundary IoU %" in report
    assert "Boundary F1 %" in report


def test_a_report_that_is_written_later_shows_the_same_images(trained, config, tmp_path):
    workdir, _, _ = trained
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    kdjax.train(config, tmp_path / "run")
    found, expected = (
        re.findall(r"<p>(.*): mIoU", (folder / "report.html").read_text())
        for folder in (tmp_path / "run", workdir)
    )
    assert found == expected
    assert len(found) == 3


def test_the_file_of_an_exported_student_is_evaluated_itself(trained, tmp_path):
    workdir, result, _ = trained
    kdjax.export(workdir, tmp_path / "out", ["stablehlo"], size=(24, 32))
    file = tmp_path / "out" / "student.stablehlo"
    found = kdjax.evaluate(workdir, exported=file)
    assert found.miou == pytest.approx(result.scores["val"].miou)
    with pytest.raises(UserError, match=r"student\.stablehlo is evaluated as it is: leave out"):
        kdjax.evaluate(workdir, exported=file, flip=True)
    with pytest.raises(UserError, match="no exported student; name one of the files student"):
        kdjax.evaluate(workdir, exported=tmp_path / "out" / "student.onnx")
    description = file.with_name("export.json")
    told = json.loads(description.read_text())
    told["exports"]["stablehlo"]["input_shape"] = [None, 48, 64, 3]
    description.write_text(json.dumps(told))
    said = "takes images of 48 x 64, and the data set has 24 x 32: export it with --height 24 --w"
    with pytest.raises(UserError, match=said):
        kdjax.evaluate(workdir, exported=file)
    description.write_text("{}")
    with pytest.raises(UserError, match=r"export\.json: it must lie beside student\.stablehlo, as"):
        kdjax.evaluate(workdir, exported=file)


def test_a_network_that_was_loaded_labels_what_the_files_are_labeled(trained, tmp_path):
    workdir, result, _ = trained
    image = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "photo.png")
    timing = kdjax.predict(workdir, str(tmp_path / "*.png"), tmp_path / "out")
    assert (timing.images, timing.shapes) == (1, 1)
    with Image.open(tmp_path / "out" / "labels" / "photo.png") as written:
        expected = np.asarray(written)
    network = kdjax.load(workdir)
    assert network.info == result.student.info
    np.testing.assert_array_equal(network.predict(image), expected)
    np.testing.assert_array_equal(network.predict(image[None]), expected[None])
    for wrong in (image / 255.0, image[..., 0], image[..., :2]):
        with pytest.raises(UserError, match="they must be RGB of 8 bits, uint8"):
            network.predict(wrong)
    with pytest.raises(UserError, match="opacity is 2; it must be from 0 to 1"):
        kdjax.predict(workdir, "x", tmp_path / "out", opacity=2)


def test_a_second_training_in_another_thread_is_refused(config, tmp_path):
    class Second:
        """Begins another run in the midst of the first one."""

        def scalars(self, step, values):
            with (
                ThreadPoolExecutor(1) as pool,
                pytest.raises(UserError, match="another thread of this process is training: train"),
            ):
                pool.submit(kdjax.train, config, tmp_path / "second").result()

        def images(self, step, images):
            pass

    config.steps = 1
    kdjax.train(config, tmp_path / "first", writers=[Second()])
    assert not (tmp_path / "second").exists()


def test_what_is_wrong_is_said_before_anything_is_written(config, tmp_path):
    def fails(message, given=config, **options):
        with pytest.raises(UserError, match=message):
            kdjax.train(given, tmp_path / "run", **options)
        assert not (tmp_path / "run").exists()

    fails("config is of type dict; it must be as kdjax.default_config", {"steps": 3})
    fails("none.py: no such config file", "none.py")
    fails(r"writers\[0\] is a str without the method scalars", writers=["wandb"])
    fails("data is a list; it must be a kdjax.data.Dataset", data=[])
    fails("--profile is 3:9; give steps from 1 to 4", profile=(3, 9))
    config.steps = 0
    fails("config.steps is 0; it must be positive")
    own = tmp_path / "own.py"
    own.write_text(
        "from kdjax import default_config\ndef get_config():\n    config = default_config()\n"
        "    config.steps = 0\n    return config\n"
    )
    fails(r"own.py: config.steps is 0; it must be positive", own)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raises in evaluation", "config.student own_networks:Faulty fails in evaluation on imag"),
        ("evaluates two images", r"logits are \[2, 6, 8, 3\] for 8 images"),
        ("state grows", "a training step turns .steps. of its state"),
        ("takes crops alone", r"fails in evaluation on images \[8, 24, 32, 3\]: ValueError: imag"),
    ],
)
def test_a_faulty_network_is_found_before_the_workdir_is_claimed(config, tmp_path, fault, message):
    with config.unlocked():
        config.student.update(configuration.network("own_networks:Faulty", fault=fault))
        config.terms = ConfigDict()
    config.student.auxiliary = True
    with pytest.raises(UserError, match=message):
        kdjax.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_a_caller_changes_later_does_not_reach_a_run(config):
    copy = configuration.read(config)
    config.steps, config.terms.augmented.weight = 7, 7.0
    assert (copy.steps, copy.terms["augmented"].weight) == (4, 1.0)


def test_an_object_cannot_reach_other_processes(config, tmp_path):
    with config.unlocked():
        config.compare.methods = ConfigDict({"plain": {}})
    config.teacher.name = "tiny"
    data = types.SimpleNamespace(name="own")
    with pytest.raises(UserError, match=r"data is an object, .* Name it in config\.data\.name"):
        kdjax.compare(config, tmp_path / "run", data=data, parallel=2)
    with pytest.raises(UserError, match="parallel is 0; it must be positive"):
        kdjax.compare(config, tmp_path / "run", parallel=0)
    assert not (tmp_path / "run").exists()


def test_overwriting_with_examples_of_ones_own_removes_the_run_and_nothing_else(
    trained, config, tmp_path
):
    workdir = tmp_path / "run"
    shutil.copytree(trained[0], workdir)
    (workdir / "notes.txt").write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}

    def refused(message):
        with pytest.raises(UserError, match=message):
            kdjax.train(config, workdir, overwrite=True)
        assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before

    config.seed = 1
    with pytest.raises(UserError, match=r"holds a run of another config.*overwrite=True\)$"):
        kdjax.train(config, workdir)
    config.student.checkpoint = str(workdir)
    refused("config.student.checkpoint is .*, of the run that overwrite=True would remove")
    config.student.checkpoint = ""
    config.optimizer.no_decay = ("stage9",)
    refused('config.optimizer.no_decay has "stage9"')
    config.optimizer.no_decay = ()
    with Workdir(workdir).hold(), pytest.raises(UserError, match="is in use: process"):
        kdjax.train(config, workdir, overwrite=True)

    generator = np.random.default_rng(0)
    examples = [
        {"image": generator.integers(0, 256, (24, 32, 3), np.uint8), "label": label}
        for label in generator.integers(0, 3, (8, 24, 32), np.uint8)
    ]
    own = kdjax.Dataset({"train": examples, "val": examples[:2]}, ["a", "b", "c"])
    result = kdjax.train(config, workdir, overwrite=True, data=own)
    assert [*result.scores["val"].iou] == ["a", "b", "c"]
    assert kdjax.evaluate(workdir, data=own).miou == result.scores["val"].miou
    # What other commands can find is named in the config.
    with pytest.raises(UserError, match=r"data set ['\"]own"):
        kdjax.evaluate(workdir)
    assert result.to_dict()["seed"] == 1
    assert [line["step"] for line in result.history if "train/loss" in line] == [1, 2, 3, 4]
    assert (workdir / "notes.txt").read_text() == "mine"
    assert (workdir / "report.html").stat().st_mtime_ns > before[workdir / "report.html"]


def test_a_folder_of_another_program_is_never_removed(config, tmp_path):
    for content in ('{"architectures": ["Segformer"]}', "no JSON"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match="is not the config of a run; overwrite=True removes"):
            kdjax.train(config, tmp_path, overwrite=True)
        assert (tmp_path / "config.json").read_text() == content
    with pytest.raises(UserError, match=r"no finished run here \(result.json is missing\)"):
        kdjax.RunResult(tmp_path)


class TestNames:
    def test_what_is_public_is_listed_once_for_python_and_for_type_checkers(self):
        assert set(kdjax.__all__) == kdjax._PLACES.keys()
        assert kdjax.__all__ == sorted(kdjax.__all__)
        tree = ast.parse((ROOT / "kdjax" / "__init__.py").read_text())
        (block,) = [node for node in tree.body if isinstance(node, ast.If)]
        imported = {}
        for node in block.body:
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    path = node.module if not alias.asname else f"{node.module}:{alias.name}"
                    imported[alias.asname or alias.name] = path
        for name in kdjax.__all__:
            if name != "load":
                assert imported[name] == kdjax._PLACES[name], name

    @pytest.mark.parametrize("name", kdjax.__all__)
    def test_it_is_there_documented_and_its_hints_resolve(self, name):
        value = getattr(kdjax, name)
        if name != "Config":
            assert value.__doc__
            typing.get_type_hints(value)

    def test_what_there_is_not(self):
        with pytest.raises(AttributeError, match="module 'kdjax' has no attribute 'trian'"):
            kdjax.trian  # noqa: B018
        assert set(kdjax.__all__) <= set(dir(kdjax))


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_the_writers_of_the_docs(monkeypatch, tracker):
    """As far as that goes without what they write to."""
    page = (ROOT / "docs" / "writers.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (code,) = [block for block in blocks if block.startswith(f"import {tracker}\n")]
    told = mock.MagicMock()
    monkeypatch.setitem(sys.modules, tracker, told)

    def train(config, workdir, **given):
        writers.check_writers(given["writers"])
        log = writers.Writers(given["writers"])
        log.scalars(3, {"train/loss": 0.5})
        log.images(3, {"val/a": np.zeros((2, 2, 3), np.uint8)})

    given = {"kdjax": types.SimpleNamespace(train=train), "config": kdjax.default_config()}
    exec(compile(code, "writers.md", "exec"), given)
    called = [name for name, _, _ in told.mock_calls if "log" in name.rpartition(".")[2]]
    assert len(called) == 2 + (tracker == "mlflow")


def test_a_notebook_gets_a_bar(monkeypatch, capsys):
    shell = types.SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    console = writers.Console(20, description="train")
    for step in (10, 20):
        console.scalars(step, {"train/loss": 0.5})
    console.scalars(20, {"val/miou": 0.5})
    console.close()
    out = capsys.readouterr().out
    assert "20/20, loss 0.5000" in out
    assert out.count("\r") > 2
    assert out.count("\n") == 2
    assert "train: step 20, val mIoU 50.00 %\n" in out


@pytest.mark.thorough
def test_a_comparison_leaves_a_network_that_teaches_and_learns_usable(config, tmp_path):
    """The plain student, of two seeds, and a method whose teacher is the student itself."""
    name = "existing_networks:module"
    with config.unlocked():
        config.student.update(configuration.network(name))
        config.terms = ConfigDict()
        config.compare.methods = ConfigDict(
            {"plain": {}, "cwd": {"cwd": configuration.term("cwd")}}
        )
    config.student.auxiliary, config.teacher.checkpoint = True, name
    config.compare.seeds, config.compare.equal_time, config.steps = (0, 1), False, 2
    before = kdjax.load(name).predict(np.zeros((16, 24, 3), np.uint8))
    result = kdjax.compare(config, tmp_path / "compared")
    assert [*result.students] == ["plain student", "cwd"]
    again = kdjax.load(name).predict(np.zeros((16, 24, 3), np.uint8))
    np.testing.assert_array_equal(again, before)


@pytest.mark.thorough
def test_a_network_of_a_notebooks_own(config, tmp_path, monkeypatch):
    """What a cell defines trains there, and says elsewhere why it cannot be found."""
    main = sys.modules["__main__"]

    class Cell(own_networks.Plain):
        __module__, __qualname__ = "__main__", "Cell"

    monkeypatch.setattr(main, "Cell", Cell, raising=False)
    config.student.auxiliary, config.steps = True, 2
    with config.unlocked():
        config.student.update(configuration.network(Cell, channels=4))
        config.terms = ConfigDict()
    result = kdjax.train(config, tmp_path / "run")
    labels = result.student.predict(np.zeros((16, 24, 3), np.uint8))
    assert labels.shape == (16, 24)
    assert result.student.info.name == "__main__:Cell"
    with config.unlocked():
        config.compare.methods.plain = ConfigDict()
        config.teacher.name = "tiny"
    with pytest.raises(UserError, match=r"defined in a notebook or script.* Move it to a module"):
        kdjax.compare(config, tmp_path / "compared", parallel=2)
    assert not (tmp_path / "compared").exists()
    monkeypatch.delattr(main, "Cell")
    with pytest.raises(UserError, match=r"network\.json.*Cell.* defined: put it into a module"):
        kdjax.load(tmp_path / "run")
    with pytest.raises(UserError, match="has no name that a config could hold"):
        configuration.network(lambda num_classes: None)
