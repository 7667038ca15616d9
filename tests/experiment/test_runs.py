"""Whole runs on a few tiny images: from a config to a student, a comparison and a report."""

import asyncio
import contextlib
import hashlib
import html
import importlib
import io
import itertools
import json
import os
import pathlib
import re
import runpy
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
import tiny_run
from absl import flags
from absl.testing import flagsaver
from ml_collections import ConfigDict
from PIL import Image

import kdjax
from kdjax import config as configuration
from kdjax import recipes
from kdjax.comparison.runs import run_comparison
from kdjax.data import sets
from kdjax.data.run_data import RunData
from kdjax.deployment.formats import make_predict_fn
from kdjax.evaluation.evaluator import TrainedNetwork
from kdjax.experiment.report import make_report, predict_panels
from kdjax.experiment.run import Run, train_run
from kdjax.experiment.student import make_student
from kdjax.experiment.workdir import Workdir
from kdjax.interop import imagenet
from kdjax.models import NETWORKS, serialization
from kdjax.models.network import arrays_by_path
from kdjax.models.outputs import MEAN_ONLY
from kdjax.reporting.report import write_report
from kdjax.reporting.results import write_runs
from kdjax.reporting.tables import csv_table, text_table
from kdjax.training.loop import Diverged
from kdjax.utils import environment
from kdjax.utils.errors import Preempted, UserError
from tools import comparison as docs_table

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("data")
    tiny_run.write_images(source)
    sets.prepare("folder", target, source=source)
    return target


def make_config(data_dir):
    config = configuration.default()
    config.steps = 4
    config.log_every = 1
    config.eval_every = 2
    config.data.name = "folder"
    config.data.data_dir = str(data_dir)
    config.data.test_split = "test"
    config.data.batch_size = 8
    config.data.eval_batch_size = 8
    config.data.crop_size = (16, 16)
    config.student.update(configuration.network("tiny", width=4))
    config.teacher.update(configuration.network("tiny", width=6))
    config.compare.teacher_steps = 2
    with config.unlocked():
        config.data.test_groups = ConfigDict({"unseen": "^b"})
        # It depends on measured times.
        config.compare.equal_time = False
        config.compare.methods = ConfigDict(
            {"plain": {}, "cwd": {"cwd": configuration.term("cwd")}}
        )
    return config


@pytest.fixture
def config(data_dir):
    return make_config(data_dir)


@pytest.fixture(scope="session")
def compared(data_dir, tmp_path_factory):
    """A comparison: its workdir, its runs, and what was printed."""
    workdir, printed = tmp_path_factory.mktemp("comparison"), io.StringIO()
    with contextlib.redirect_stdout(printed):
        runs = run_comparison(make_config(data_dir), str(workdir), (0,)).runs
    return workdir, runs, printed.getvalue()


@pytest.fixture(scope="session")
def comparison(compared):
    return compared[0]


def test_a_comparison_ends_in_a_table_and_a_report(config, compared):
    comparison, runs, out = compared
    assert [run.path.relative_to(comparison).as_posix() for run in runs] == [
        "teacher",
        "plain/seed0",
        "cwd/seed0",
    ]
    assert "cwd, seed 0: loss term cwd: CWD(logits, logits; temperature 4.0)" in out
    assert "Training a teacher of " in out.splitlines()[0]
    assert ", then 2 runs of " in out.splitlines()[0]
    assert f"trains tiny for 4 steps of 8 images, into {comparison / 'cwd' / 'seed0'}\n" in out
    assert "teacher tiny (width 6" in out

    result = json.loads(runs[2].result.read_text())
    assert set(result["scores"]) == {"val", "test", "test/unseen"}
    assert result["scores"]["test"]["agreement"] is not None
    logged = [json.loads(line) for line in runs[2].metrics.read_text().splitlines()]
    assert [line["step"] for line in logged if "train/cwd" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in logged if "val/miou" in line] == [2, 4]
    assert list(runs[2].tensorboard.glob("events*"))

    images = RunData(config.data)
    panels = {"teacher": str(runs[0].student), "cwd": str(runs[2].path)}
    options = configuration.read(config)
    examples, inspected = predict_panels(options, images, panels, runs[2])
    assert inspected.worst
    report = make_report(
        options,
        images,
        runs,
        examples,
        title="A test",
        subtitle="of everything",
    )
    write_report(comparison / "report.html", report)
    assert report.split == "test"
    assert [line.split()[0] for line in text_table(report).splitlines()[2:]] == [
        "teacher",
        "plain",
        "cwd",
    ]
    page = (comparison / "report.html").read_text()
    assert "<svg" in page
    # Costs are in the tables, not drawn as if they were losses.
    assert not re.search("step (seconds|processor seconds|flops|bytes)", page)
    plain, distilled = (run.summary("test") for run in runs[1:])
    assert 0 < (plain.step_flops or 0) < (distilled.step_flops or 0)
    assert 0 < (plain.step_bytes or 0) < (distilled.step_bytes or 0)
    assert (plain.step_seconds or 0) > 0
    assert (plain.step_processor_seconds or 0) > 0
    assert plain.config_fingerprint != distilled.config_fingerprint


def test_what_is_done_is_not_done_again(config, comparison, capsys):
    before = {p: p.stat().st_mtime_ns for p in comparison.rglob("result.json")}
    result = kdjax.compare(config, comparison)
    assert {p: p.stat().st_mtime_ns for p in comparison.rglob("result.json")} == before
    assert capsys.readouterr().out.count("already done") == 3

    teacher, plain, cwd = result.table
    assert [row["method"] for row in result.table] == ["teacher", "plain student", "cwd"]
    assert cwd["miou"] == result.students["cwd"].scores["test"].miou
    assert cwd["vs_plain"] == pytest.approx(cwd["miou"] - plain["miou"])
    stored = json.loads(json.dumps(result.to_dict()))
    assert set(stored["splits"]) == {"test", "test/unseen"}
    assert stored["table"][0] == teacher
    said, beside = str(result), "with results.md, results.csv and runs.csv beside it"
    assert said.startswith("\ntest\nMethod ")
    assert "\n\ntest/unseen\nMethod " in said
    assert said.endswith(f"\nreport: {result.report}, {beside}")
    assert "<th>cwd</th>" in result._repr_html_()
    for name in ("report.html", "results.md", "results.csv", "runs.csv"):
        assert (comparison / name).stat().st_size > 100
    page = html.unescape((comparison / "report.html").read_text())
    assert f'<span>kdjax.compare(config,</span> <span>"{comparison}")</span>' in page


def test_the_docs_have_a_row_for_each_method_of_a_comparison(config, comparison, tmp_path, capsys):
    runs = run_comparison(config, str(comparison), (0,)).runs
    splits = ("val", "test", "test/unseen")
    summaries = {split: [run.summary(split) for run in runs] for split in splits}
    write_runs(tmp_path / "runs.csv", summaries, ["a", "b", "c"])
    capsys.readouterr()
    docs_table.main(str(tmp_path / "runs.csv"), str(tmp_path / "chart.png"))
    header, _, *rows = capsys.readouterr().out.splitlines()
    assert [row.split(" | ")[0] for row in rows] == ["| teacher", "| plain student", "| cwd"]
    assert "own effect" not in header, "nothing of it is known, as no method builds on another"
    unseen = f"{100 * summaries['test/unseen'][2].miou:.2f}"
    assert rows[2].split(" | ")[header.split(" | ").index("unseen")] == unseen
    assert (tmp_path / "chart.png").stat().st_size > 1000


@pytest.mark.thorough
def test_a_teacher_that_was_given_has_its_row(config, comparison, tmp_path):
    config.teacher.checkpoint = str(comparison / "teacher")
    with config.unlocked():
        del config.compare.methods["cwd"]
    runs = run_comparison(config, str(tmp_path), (0,)).runs
    assert [run.path.name for run in runs] == ["teacher", "seed0"]
    given, trained = (run.summary("test") for run in (runs[0], Workdir(comparison / "teacher")))
    assert (given.miou, given.parameters) == (trained.miou, trained.parameters)
    report = make_report(
        configuration.read(config), RunData(config.data), runs, [], title="", subtitle=""
    )
    assert re.search(r"^teacher .* –  +–$", text_table(report), re.MULTILINE)
    write_report(tmp_path / "report.html", report)
    assert csv_table(report).splitlines()[1].endswith(",,")


def test_the_exported_student_has_no_adapter_and_the_teacher_is_not_saved(config, comparison):
    path = comparison / "cwd" / "seed0" / "student" / "network.json"
    described = json.loads(path.read_text())
    assert (described["width"], described["num_classes"]) == (4, 3)
    stored = Workdir(comparison / "cwd" / "seed0")
    assert stored.read_options().teacher.checkpoint == str(comparison / "teacher" / "student")
    _, variables, _ = serialization.load(path.parent)
    parts = {name.split("/")[0] for name in arrays_by_path(variables["params"])}
    assert parts == {"backbone", "head", "auxiliary_head"}


def test_the_evaluation_of_a_run_gives_its_scores_and_the_number_of_shapes(
    comparison, data_dir, tmp_path, capsys, monkeypatch
):
    # Here, since its flags have the names of other commands' flags.
    evaluate = importlib.import_module("kdjax.cli.evaluate")
    monkeypatch.setattr(environment, "set_up_jax", lambda: None)
    workdir = tmp_path / "run"
    shutil.copytree(comparison / "cwd" / "seed0", workdir)
    # The data may have been moved since.
    stored = json.loads((workdir / "config.json").read_text())
    stored["data"]["data_dir"] = "gone"
    (workdir / "config.json").write_text(json.dumps(stored))
    said = {}
    for mode in (["--mode=whole"], ["--mode=slide", "--window=16,16", "--scales=1,1.5"]):
        with flagsaver.flagsaver():
            given = [f"--workdir={workdir}", "--split=test", f"--data_dir={data_dir}"]
            flags.FLAGS(["evaluate", *given, *mode])
            evaluate.main([])
        said[mode[0]] = capsys.readouterr().out.splitlines()
    expected = json.loads((workdir / "result.json").read_text())["scores"]["test"]["miou"]
    whole, slide = said.values()
    assert whole[-1].startswith(f"test: mIoU {100 * expected:.2f} %, pixel accuracy")
    assert slide[-1].startswith("test: mIoU ")
    assert whole[0] == slide[0] == f"Scoring {workdir} on every image of the test split"
    assert [len(lines) for lines in said.values()] == [5, 5]  # three classes


def run(config, workdir):
    train_run(Run(configuration.read(config), Workdir(workdir), "test", "student", "plain"))


def test_a_run_of_another_config_is_refused(config, comparison):
    config.optimizer.learning_rate = 0.5
    with pytest.raises(UserError, match=r"config.optimizer.learning_rate 0.01 there, 0.5 now"):
        run_comparison(config, str(comparison), (0,))


def test_nothing_is_written_for_a_wrong_config(config, comparison, tmp_path):
    workdir = tmp_path / "run"
    teacher = str(comparison / "teacher")

    def fails(message):
        with pytest.raises(UserError, match=message):
            run(config, workdir)
        assert not workdir.exists()

    with config.unlocked():
        config.terms = ConfigDict({"cwd": configuration.term("cwd", student="stage7")})
    fails("set config.teacher.checkpoint to a network checkpoint")
    config.terms = ConfigDict()
    config.optimizer.no_decay = ("stage9",)
    fails('config.optimizer.no_decay has "stage9", which is found in no path')
    config.optimizer.no_decay = ()
    config.terms = ConfigDict({"cwd": configuration.term("cwd", student="stage7")})
    config.teacher.checkpoint = str(tmp_path)
    fails("no network checkpoint here")
    config.teacher.checkpoint = teacher
    fails('the student has no map "stage7"; it has aux_head, aux_logits, head, logits, stage3, ')
    config.terms.cwd.student = "logits"
    config.teacher.min_miou = 0.99
    fails("below config.teacher.min_miou 0.99")
    config.teacher.min_miou = 0.0
    config.teacher.width = 8
    fails("config.teacher.width is 8, but .* holds 6")
    config.teacher.width = 6
    config.data.batch_size = 9
    fails("data.batch_size is 9; it must be a multiple of the 8 devices")
    config.data.batch_size = 8
    config.data.test_groups.unseen = "^c"
    fails(r'test_groups.unseen "\^c" finds none of the 3 names in test, as "a0')
    config.data.val_split = "validation"
    fails('config.data.val_split is "validation"; folder in .* has train, val, test')
    config.data.name = "foldr"
    fails("unknown data set 'foldr': did you mean \"folder\"")


@pytest.mark.thorough
def test_an_interrupted_run_continues(config, tmp_path, monkeypatch, capsys):
    config.data.test_split, config.data.test_groups = "", {}
    real, calls, metrics = RunData.train_batches, [], tmp_path / "metrics.jsonl"

    def stops_early(self, *, first_step, **options):
        calls.append(first_step)
        for index, batch in enumerate(real(self, first_step=first_step, **options)):
            if first_step == 0 and index == 3:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(RunData, "train_batches", stops_early)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path)
    slow = re.sub(r'"val/seconds": [^,}]*', '"val/seconds": 1e4', metrics.read_text())
    metrics.write_text(slow)
    write = serialization.save

    def asked(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return write(*arguments)

    monkeypatch.setattr(serialization, "save", asked)
    # What is at its end is brought there first.
    with pytest.raises(Preempted, match=r"the run in .* is done"):
        run(config, tmp_path)
    # The time of the first start is in its log.
    assert json.loads((tmp_path / "result.json").read_text())["seconds"] > 1e4
    assert calls == [0, 2]
    assert "continues after step 2" in capsys.readouterr().out
    logged = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["step"] for line in logged if "train/loss" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in logged if line.get("val/seconds", 0) > 0] == [2, 4]


@pytest.mark.thorough
def test_a_finished_run_at_a_constant_rate_can_be_trained_longer(config, tmp_path, capsys):
    config.data.test_split, config.data.test_groups = "", ConfigDict()
    config.student.auxiliary = False
    config.optimizer.schedule = "optax:constant_schedule"
    workdir, other = tmp_path / "run", tmp_path / "whole"
    whole = kdjax.train(config, other)
    config.steps = 2
    kdjax.train(config, workdir)
    config.steps = 4
    result = kdjax.train(config, workdir)
    assert "train: continues after step 2\n" in capsys.readouterr().out
    assert Workdir(workdir).read_options().steps == result.files.read_result()["steps"] == 4
    assert result.scores == whole.scores
    assert serialization.fingerprint_in(workdir) == serialization.fingerprint_in(other)
    assert "4 steps of 8 images" in result.files.report.read_text()

    def fails(message):
        before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
        with pytest.raises(UserError, match=message):
            kdjax.train(config, workdir)
        assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before

    config.steps = 2
    fails("another config .config.steps 4 there, 2 now")
    config.steps, config.optimizer.learning_rate = 6, 0.5
    fails("config.optimizer.learning_rate 0.01 there, 0.5 now")
    # Of a schedule that ends at the last step, as of a weight that grows until then.
    stored = json.loads((workdir / "config.json").read_text())
    config.optimizer.learning_rate, config.optimizer.schedule = 0.01, "poly"
    stored["optimizer"]["schedule"] = "poly"
    (workdir / "config.json").write_text(json.dumps(stored))
    fails(
        'holds a run of 4 steps, which cannot go on to 6: the learning rate of "poly" depends on '
        f"config.steps. .*set config.student.checkpoint={workdir}"
    )


def test_a_run_that_wrote_no_checkpoint_says_that_it_begins_again(config, tmp_path, capsys):
    config.data.test_split, config.data.test_groups = "", {}
    workdir = Workdir(tmp_path)
    workdir.claim(configuration.read(config))
    workdir.metrics.write_text('{"step": 1, "train/loss": 1.0}\n')
    run(config, tmp_path)
    assert (
        "begins again: the earlier start ended before its first checkpoint\n"
        in capsys.readouterr().out
    )


@pytest.mark.thorough
def test_a_run_from_imagenet_weights_keeps_them_and_their_preprocessing(
    config, tmp_path, monkeypatch
):
    """Their file is real, the network's is not: reading it is tested in test_students.py."""
    monkeypatch.setenv("KDJAX_WEIGHTS", str(tmp_path))
    monkeypatch.setitem(imagenet.BACKBONES, "tiny", "tiny")
    monkeypatch.setattr(imagenet, "PUBLISHED_WIDTH", 4)
    monkeypatch.setattr(imagenet.ImageNetFile, "load", lambda self, _, given: (given, MEAN_ONLY))
    files = {}
    for content in (b"a", b"b"):
        sha256 = hashlib.sha256(content).hexdigest()
        files[sha256] = imagenet.KnownFile(f"tiny-{sha256[:8]}.pth", "")
        (tmp_path / files[sha256].name).write_bytes(content)
    (first, file), (_, other) = files.items()
    monkeypatch.setitem(imagenet.FILES, "tiny", (file, other))
    config.data.test_split, config.data.test_groups = "", {}
    config.student.backbone = "imagenet"
    real = RunData.train_batches

    def stops_early(self, **options):
        yield from itertools.islice(real(self, **options), 3)
        raise KeyboardInterrupt

    monkeypatch.setattr(RunData, "train_batches", stops_early)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run")
    monkeypatch.setattr(RunData, "train_batches", real)
    # Now another file is taken, since the first has gone.
    (tmp_path / file.name).rename(tmp_path / "gone")
    with pytest.raises(UserError, match=f"was made with weights '{first}' .*continue with what"):
        run(config, tmp_path / "run")
    (tmp_path / "gone").rename(tmp_path / file.name)
    run(config, tmp_path / "run")
    expected = {"file": file.name, "sha256": first}
    assert json.loads((tmp_path / "run" / "result.json").read_text())["weights"] == expected
    _, _, info = serialization.load(tmp_path / "run")
    assert (info.preprocessing, info.initial_weights) == (MEAN_ONLY, expected)
    assert f"its backbone from {file.name} (SHA-256 {first})" in info.source


@pytest.mark.thorough
def test_a_network_with_random_state_of_its_own(config, tmp_path, monkeypatch):
    """It trains, is saved, continues bit for bit, and draws nothing where it predicts.

    One of the runs is in a thread, in which a loop of asyncio runs, as in a notebook.
    """
    monkeypatch.setitem(NETWORKS, "noisy", "tiny:noisy")
    config.data.test_split, config.data.test_groups = "", {}
    config.student.name = "noisy"
    config.optimizer.ema_decay = 0.5

    async def run_whole():
        run(config, tmp_path / "whole")

    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, run_whole()).result()
    real = RunData.train_batches

    def stops_early(self, *, first_step, **options):
        yield from itertools.islice(real(self, first_step=first_step, **options), 3)
        raise KeyboardInterrupt

    monkeypatch.setattr(RunData, "train_batches", stops_early)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "cut")
    monkeypatch.setattr(RunData, "train_batches", real)
    run(config, tmp_path / "cut")
    whole, cut = (serialization.load(tmp_path / name) for name in ("whole", "cut"))
    assert whole[2].fingerprint == cut[2].fingerprint

    # What predicts is the same each time, and what trains on from it draws by its own seed.
    network = TrainedNetwork.load(str(tmp_path / "cut"))
    images = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    first, second = (network.predictor(network.variables, images) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    label = make_predict_fn(*whole[:2], whole[2].preprocessing)
    np.testing.assert_array_equal(label(images), first)
    config.student.checkpoint = str(tmp_path / "whole")
    keys, data = [], RunData(config.data)
    for config.seed in (1, 1, 2):
        _, variables, _ = make_student(config, data.class_names, data.palette)
        key = variables["state"]["backbone"]["dropout"]["rngs"]["key"]
        keys.append(jax.random.key_data(key).tolist())
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.thorough
def test_a_diverged_run_stops_without_a_result(config, tmp_path):
    config.optimizer.learning_rate = 1e30
    config.data.test_split, config.data.test_groups = "", {}
    with pytest.raises(Diverged, match=r"the run diverged: .* at step [234]"):
        run(config, tmp_path)
    assert not (tmp_path / "result.json").exists()


def test_a_path_that_cannot_be_written(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to --workdir"):
        run(config, tmp_path / "file" / "run")


@pytest.mark.parametrize(
    "begin", [run, lambda config, path: run_comparison(config, str(path), (0,))]
)
def test_a_workdir_where_another_run_is_at_work(config, tmp_path, begin):
    message = rf"--workdir {tmp_path} is in use: process {os.getpid()} of .* writes there since"
    with Workdir(tmp_path).hold():
        before = [*tmp_path.iterdir()]
        with pytest.raises(UserError, match=message):
            begin(config, tmp_path)
        assert [*tmp_path.iterdir()] == before


@pytest.fixture
def read_only(tmp_path):
    """A folder that nobody may write to, not even root: it is a mount where root asks."""
    path = tmp_path / "read_only"
    path.mkdir()
    mounted = os.geteuid() == 0
    if not mounted:
        path.chmod(0o555)
    elif subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", path]).returncode:
        pytest.skip("root may not mount here, and could write to any other folder")
    yield path
    if mounted:
        subprocess.run(["umount", path], check=True)


def test_a_workdir_on_a_read_only_path(config, read_only):
    with pytest.raises(UserError, match=r"cannot write to --workdir .*: (Read-only|Permission)"):
        run(config, read_only / "run")


# Of the family, one; the tests of recipes build all.
ARGUMENTS = {
    "published": ["cityscapes,pspnet_r101_r18,cwd"],
    "camvid_pretrain": ["half", "full"],
    "camvid_lite": [
        "lite0",
        "lite0_cached",
        "lite0_full_teacher",
        "rare",
        "scratch",
        "cached",
        "features",
        "strong",
        "longer,4000",
        "few",
        "few_labeled",
        "full",
        "field",
        "field_longer",
        "field_sums",
        "teacher",
        "full_teacher",
        "few_teacher",
    ],
    "five_bands": ["all", "rgb"],
}


@pytest.mark.parametrize(
    ("name", "argument"),
    [(path.stem, argument) for path in CONFIGS for argument in ARGUMENTS.get(path.stem, [""])],
)
def test_every_config_builds(name, argument, data_dir):
    path = ROOT / "configs" / f"{name}.py"
    module = runpy.run_path(str(path))
    taught = {"photos": "", "from_teacher": ",a.onnx", "pretrain": ",a"}
    argument = argument or (f"{data_dir}{taught[name]}" if name in taught else "")
    config = module["get_config"](*([argument] if argument else []))
    configuration.read(config)
    again = configuration.from_json(configuration.to_json(config))
    assert json.loads(again.to_json()) == json.loads(config.to_json())
    assert f"configs/{path.name}" in module["__doc__"], "its docstring holds the command to run"


def test_photos_decide_their_recipe(tmp_path, data_dir, capsys, monkeypatch):
    get_config = runpy.run_path(str(ROOT / "configs" / "photos.py"))["get_config"]
    config = get_config(str(data_dir))
    # Nine images of 24 x 32 pixels, and three of each of the other splits, of one shape.
    assert (config.steps, config.data.batch_size, config.data.crop_size) == (600, 8, (32, 32))
    assert (config.data.test_split, config.data.eval_pad_to) == ("test", 1)
    assert config.student.backbone == config.teacher.backbone == "imagenet"
    assert {*config.compare.methods} == {"plain", "dist"}
    assert config.compare.methods.dist.inter.weight == config.compare.methods.dist.intra.weight == 1
    said = capsys.readouterr().out
    assert "photos: 9 images to train on and 3 to validate, 3 classes, mostly 32 x 24" in said
    # Flags are read later.
    assert "photos: unless --config.steps overrides it, 600 steps of 8 images: 25 times" in said
    assert "teacher_steps overrides it, the teacher trains for 600 steps" in said

    source, target = tmp_path / "source", tmp_path / "data"
    rng = np.random.default_rng(0)
    sizes = [(70, 100), (100, 71), (90, 90), (64, 101)]
    for index, size in enumerate(40 * sizes):
        split = "train" if index < 156 else "val"
        for kind, shape in (("images", (*size, 3)), ("labels", size)):
            (source / kind / split).mkdir(parents=True, exist_ok=True)
            path = source / kind / split / f"{index}.png"
            Image.fromarray(rng.integers(0, 3, shape, np.uint8)).save(path)
    sets.prepare("folder", target, source=source)
    config = get_config(str(target))
    # 25 times 156 images in batches of 8 are fewer steps than the least.
    assert (config.steps, config.data.crop_size) == (600, (64, 64))
    assert (config.data.test_split, config.data.eval_pad_to) == ("", 128)

    # With 156 images without labels for 9 that have some, of which there is one for each then.
    more = tmp_path / "more"
    sets.prepare("folder", more, source=source / "images" / "train", unlabelled=True)
    monkeypatch.setattr(recipes, "PHOTO_EPOCHS", 100)
    config = get_config(f"{data_dir},{more}")
    assert (config.data.weight, config.data.mixture.more.weight) == (1, 1)
    assert (config.steps, config.compare.teacher_steps) == (round(100 * 165 / 8), 600)
    assert {*config.compare.methods} == {"plain", "dist", "cwd"}
    assert RunData(configuration.read(config).data).unlabelled == ["more"]
    assert get_config(f"{target},{data_dir}").data.weight == round(156 / 9)
    with pytest.raises(UserError, match="have no labels; name it second"):
        get_config(str(more))
    assert "each of their 4 shapes would be compiled" in capsys.readouterr().out
    with pytest.raises(UserError, match="has not been prepared in"):
        get_config(str(tmp_path))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("steps", 0, "config.steps is 0; it must be positive"),
        ("export", "lst", 'config.export is "lst"; it must be last or best'),
        ("optimizer.name", "adam", 'unknown optimizer "adam": did you mean "adamw"'),
        ("data.crop_size", (64,), r"config.data.crop_size is \(64,\); .* two positive"),
        ("data.scale_range", (2.0, 0.5), "the first must not be larger"),
        ("optimizer.ema_decay", 1.0, "config.optimizer.ema_decay is 1.0"),
        ("optimizer.accumulate", 3, "16 cannot be cut into 3 equal micro-batches"),
    ],
)
def test_values_that_make_no_sense(key, value, message):
    config = configuration.default()
    with config.unlocked():
        config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=message):
        configuration.read(config)


def test_a_config_of_an_earlier_version_is_the_same_without_the_keys_that_went():
    config = configuration.default()
    values = json.loads(configuration.to_json(config))
    values["teacher"] |= {"int8": False, "min_agreement": 0.98}
    assert configuration.to_json(configuration.from_json(json.dumps(values))) == (
        configuration.to_json(config)
    )


def test_configs_are_stored_as_they_are():
    config = configuration.default()
    again = configuration.from_json(configuration.to_json(config))
    assert json.loads(again.to_json()) == json.loads(config.to_json())
    assert again.data.crop_size == config.data.crop_size
