"""Tuning on validation, runs that diverge, and several runs at once."""

import dataclasses
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

from kdjax import config as configuration
from kdjax.comparison import cached_teacher, equal_time, parallel, tuning
from kdjax.comparison.runs import run_comparison
from kdjax.comparison.tuning import Setting, TuningResult
from kdjax.evaluation.evaluator import Scores
from kdjax.experiment.run import Run
from kdjax.experiment.workdir import Workdir
from kdjax.interop import imagenet
from kdjax.models import serialization
from kdjax.utils import environment
from kdjax.utils.bands import RGB
from kdjax.utils.errors import Preempted, Transient, UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAN = math.nan
RATES = [Setting(rate, 5e-4) for rate in (0.1, 0.2, 0.4)]


class Trained:
    """Replaces training: records every run, and finishes it with a score of its settings."""

    def __init__(self, score):
        self.score, self.configs = score, {}

    def __call__(self, run, *, data, patience):
        config, files, name = run.options, run.files, run.name
        files.claim(config)
        if files.result.exists():
            return
        assert name not in self.configs
        self.configs[name] = config
        splits = [name for name in (config.data.val_split, config.data.test_split) if name]
        miou = self.score(config)
        if math.isnan(miou):
            raise parallel.Diverged("the run diverged: loss is nan at step 3")
        files.student.mkdir(parents=True)
        (files.student / "network.json").write_text(described(fingerprint=name))
        teacher = config.teacher.checkpoint
        files.write_result(
            {
                "scores": {split: {"miou": miou} for split in splits},
                "teacher": [teacher, serialization.fingerprint_in(teacher)] if teacher else None,
                "platform": "cpu",
                "step_processor_seconds": {"cwd": 0.5, "nfd": 0.36}.get("".join(config.terms), 0.2),
            }
        )


def described(fingerprint):
    """Returns the text of a `network.json`."""
    info = serialization.NetworkInfo(
        "tiny", 1, 4, False, ("a",), ((0, 0, 0),), source="a test", fingerprint=fingerprint
    )
    return json.dumps({"format": serialization.FORMAT, **dataclasses.asdict(info)})


# The plain students that train for as long as the two methods.
LONGER = ("equal_time, 2500 steps, seed 0", "equal_time, 1800 steps, seed 0")


@pytest.fixture
def config():
    config = configuration.default()
    config.data.test_split = "test"
    config.compare.cache = False
    config.teacher.name = "tiny"
    config.optimizer.learning_rate = 0.05
    config.compare.learning_rates = (0.1, 0.2, 0.4)
    config.compare.weight_decays = (0.0, 5e-4)
    config.compare.weight_factors = (0.5, 1.0, 2.0)
    config.compare.tuning_seeds = (7, 8)
    terms = {"cwd": configuration.term("cwd", schedule="linear", final_weight=1.0)}
    with config.unlocked():
        config.compare.methods = ConfigDict(
            {"cwd": terms, "plain": {}, "nfd": {"nfd": configuration.term("nfd")}}
        )
    return config


def score(config):
    """Is highest at a rate of 0.2 without decay, and with half the weight of CWD."""
    far = abs(math.log2(config.optimizer.learning_rate / 0.2)) + config.optimizer.weight_decay
    if "cwd" in config.terms:
        far += abs(config.terms["cwd"].weight - 1.5)
    return 0.5 - 0.1 * far + 0.001 * config.seed


def test_validation_picks_for_the_plain_student_and_then_for_each_method(
    config, tmp_path, monkeypatch
):
    train = Trained(score)
    monkeypatch.setattr(parallel, "train_run", train)
    comparison = run_comparison(config, str(tmp_path), (0, 1))
    tuned = {label: run for label, run in train.configs.items() if run.seed in (7, 8)}
    assert len(tuned) == 2 * (3 * 2 + 3 + 3)
    assert not any(run.data.test_split for run in tuned.values())
    # Every method gets the plain student's choice, and as many runs as any other.
    distilled = [run for run in tuned.values() if run.terms]
    assert {(r.optimizer.learning_rate, r.optimizer.weight_decay) for r in distilled} == {
        (0.2, 0.0)
    }
    final = {label: run for label, run in train.configs.items() if run.seed in (0, 1)}
    assert set(final) == {
        "teacher",
        *(
            f"{name}, seed {seed}"
            for name in ("plain", "cwd", "nfd", "equal_time, 2500 steps", "equal_time, 1800 steps")
            for seed in (0, 1)
        ),
    }
    assert all(run.data.test_split for run in final.values())
    assert final["teacher"].optimizer.learning_rate == config.compare.teacher_learning_rate
    cwd = final["cwd, seed 1"]
    assert (cwd.terms["cwd"].weight, cwd.terms["cwd"].final_weight) == (1.5, 0.5)
    assert final["nfd, seed 0"].terms["nfd"].weight == 1.5  # of equal scores the first
    assert comparison.notes[0].endswith(
        "chosen: lr0.2_decay0 (the smallest or largest weight_decay that was tried)"
    )
    # Plain students have as many steps as take as long as those of each method.
    longer, plain = final["equal_time, 2500 steps, seed 1"], final["plain, seed 1"]
    assert longer.steps == 2.5 * plain.steps
    shorter = longer.to_config()
    shorter.steps = plain.steps
    assert configuration.to_json(shorter) == plain.stored
    assert comparison.notes[-2:] == [
        "plain student, 2.5x time: 2,500 steps, which take as long as the 1,000 of cwd "
        "(0.5 processor seconds a step; the plain student's take 0.2)",
        "plain student, 1.8x time: 1,800 steps, which take as long as the 1,000 of nfd "
        "(0.36 processor seconds a step; the plain student's take 0.2)",
    ]
    assert list(comparison.students) == ["plain student", "cwd", "nfd"]
    written = json.loads((tmp_path / "tuning.json").read_text())
    assert [entry["method"] for entry in written] == ["plain", "cwd", "nfd"]
    assert written[0]["taken"]["learning_rate"] == 0.2
    # All is done: nothing runs again, and another seed adds its own runs alone.
    run_comparison(config, str(tmp_path), (0, 1, 2))
    assert len(train.configs) == 1 + 24 + 3 * 5


def test_without_grids_nothing_is_tuned(config, tmp_path, monkeypatch):
    for key in ("learning_rates", "weight_decays", "weight_factors"):
        config.compare[key] = ()
    config.teacher.update({"cache": "scores", "cache_classes": 3})
    train = Trained(score)
    monkeypatch.setattr(parallel, "train_run", train)
    comparison = run_comparison(config, str(tmp_path), (0,))
    assert len(train.configs) == 6
    # What has no teacher does not change with its cache.
    caches = {
        label: tuple(getattr(run.teacher, key) for key in ("cache", "cache_classes"))
        for label, run in train.configs.items()
    }
    assert caches == {
        **dict.fromkeys(("teacher", "plain, seed 0", *LONGER), ("", 0)),
        **dict.fromkeys(("cwd, seed 0", "nfd, seed 0"), ("scores", 3)),
    }
    assert train.configs["cwd, seed 0"].optimizer.learning_rate == 0.05
    assert len(comparison.notes) == 2
    assert not (tmp_path / "tuning.json").exists()


def test_only_distilled_students_train_on_images_without_labels(config, tmp_path, monkeypatch):
    for key in ("learning_rates", "weight_decays", "weight_factors"):
        config.compare[key] = ()
    more = {"drawn": configuration.extra_set("shapes", split="val")}
    more["more"] = configuration.extra_set("shapes", split="test", labelled=False)
    with config.unlocked():
        config.data.mixture.update(more)
    train = Trained(score)
    monkeypatch.setattr(parallel, "train_run", train)
    run_comparison(config, str(tmp_path), (0,))
    assert {label: " ".join(run.data.mixture) for label, run in train.configs.items()} == {
        **dict.fromkeys(("teacher", "plain, seed 0", *LONGER), "drawn"),
        **dict.fromkeys(("cwd, seed 0", "nfd, seed 0"), "drawn more"),
    }
    assert [*config.data.mixture] == ["drawn", "more"]


def test_a_finished_comparison_is_known_by_every_path_that_leads_to_it(
    config, tmp_path, monkeypatch
):
    for key in ("learning_rates", "weight_decays", "weight_factors"):
        config.compare[key] = ()
    monkeypatch.chdir(tmp_path)
    train = Trained(lambda run: NAN if "nfd" in run.terms else 0.5)
    monkeypatch.setattr(parallel, "train_run", train)
    run_comparison(config, "runs/one", (0,))
    assert len(train.configs) == 5  # a plain student as long as cwd; nfd diverged
    run_comparison(config, str(tmp_path / "runs" / "one"), (0,))
    (tmp_path / "link").symlink_to("runs")
    config.data.data_dir = str(tmp_path / "data")
    run_comparison(config, "link/../runs/one", (0,))
    (tmp_path / "runs" / "one").rename("two")
    run_comparison(config, "two", (0,))
    assert len(train.configs) == 5
    # But not with other weights in the teacher's place, nor with other data.
    (tmp_path / "two" / "teacher" / "student" / "network.json").write_text(described("other"))
    with pytest.raises(UserError, match=r"cwd/seed0 holds a run of another config \(config.t"):
        run_comparison(config, "two", (0,))
    config.data.data_dir = "elsewhere"
    with pytest.raises(UserError, match=r"data_dir 'data' there, 'elsewhere' now"):
        run_comparison(config, "two", (0,))


def test_what_the_stored_config_does_not_name_had_its_default(config, tmp_path):
    files = Workdir(tmp_path)
    files.claim(configuration.read(config))
    stored = json.loads(files.config.read_text())
    del stored["teacher"]["cache_classes"]
    files.config.write_text(json.dumps(stored))
    files.claim(configuration.read(config))
    config.teacher.cache_classes = 3
    with pytest.raises(UserError, match=r"cache_classes 0 there, 3 now"):
        files.claim(configuration.read(config))


@pytest.mark.parametrize("text", ["", "[]", '{"data": 3}', '{"steps": "many"}'])
def test_a_damaged_config_of_a_run_is_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config.json: damaged, or not the config of a run"):
        Workdir(tmp_path).read_options()


def test_scores_of_a_split_without_labels_are_null(tmp_path):
    files = Workdir(tmp_path)
    nothing = Scores(np.zeros((2, 2), np.int64), agreement=NAN)
    files.write_result({"scores": {"val": nothing.as_dict()}, "seconds": math.inf})
    written = json.loads(files.result.read_text(), parse_constant=pytest.fail)
    assert written["scores"]["val"] == {
        **dict.fromkeys(("miou", "pixel_accuracy", "agreement")),
        **{name: [None, None] for name in ("iou", "precision", "recall")},
    }
    assert math.isnan(files.miou("val"))
    summary = files.summary("val")
    assert math.isnan(summary.miou)
    assert math.isnan(summary.pixel_accuracy)


def test_the_plain_student_of_equal_time_is_optional(config, tmp_path, monkeypatch):
    config.compare.equal_time = False
    config.compare.learning_rates = config.compare.weight_decays = ()
    config.compare.weight_factors = ()
    monkeypatch.setattr(parallel, "train_run", Trained(score))
    comparison = run_comparison(config, str(tmp_path), (0,))
    assert list(comparison.students) == ["plain student", "cwd", "nfd"]
    assert not comparison.notes


def untuned(config):
    config.compare.learning_rates = config.compare.weight_decays = ()
    config.compare.weight_factors = ()
    return config.unlock()


def test_a_costlier_method_that_joins_makes_the_plain_student_train_longer(
    config, tmp_path, monkeypatch
):
    train = Trained(score)
    monkeypatch.setattr(parallel, "train_run", train)
    cheap, whole = untuned(config).copy_and_resolve_references(), config
    del cheap.compare.methods["cwd"]

    def steps(asked, seeds):
        """Returns the steps of the longer plain students, and the number of new runs."""
        before = len(train.configs)
        train.configs = {f"{name}, earlier": run for name, run in train.configs.items()}
        runs = run_comparison(asked, str(tmp_path), seeds).runs
        longer = [files for files in runs if "equal_time" in str(files.path)]
        return [files.read_options().steps for files in longer], len(train.configs) - before

    assert steps(cheap, (0,)) == ([1800], 4)
    assert steps(whole, (0, 1)) == ([2500, 2500, 1800, 1800], 2 + 3 + 2)
    # The cost of a method is that of its first seeds.
    assert steps(whole, (0, 1)) == ([2500, 2500, 1800, 1800], 0)
    assert steps(cheap, (0, 1)) == ([1800, 1800], 0)
    kept = json.loads((tmp_path / "equal_time.json").read_text())["step_processor_seconds"]
    assert kept == {"plain student": 0.2, "cwd": 0.5, "nfd": 0.36}


def test_a_line_explains_why_no_plain_student_of_equal_time_is_trained(
    config, tmp_path, monkeypatch, capsys
):
    del untuned(config).compare.methods["cwd"]
    monkeypatch.setattr(parallel, "train_run", Trained(lambda run: 0.5))
    measured = [("plain student", 0.4), ("nfd", 0.36), ("plain student", None)]
    results = [
        (method, {"platform": "gpu", "step_seconds": cost, "step_processor_seconds": 9.0})
        for method, cost in measured
    ]
    real = equal_time.step_costs
    monkeypatch.setattr(equal_time, "step_costs", lambda _: real(results))
    said = (
        "A step of nfd costs at most 1.1 plain steps, so the plain student itself is the one of "
        "equal time."
    )
    assert run_comparison(config, str(tmp_path), (0,)).notes == [said]
    assert said in capsys.readouterr().out
    assert not (tmp_path / "equal_time").exists()
    assert equal_time.plan("step_seconds", {"nfd": 0.36}, 10) == (
        [],
        "No plain student of equal time: the cost of a step is known only for nfd.",
    )


def test_methods_of_similar_cost_share_a_longer_plain_student():
    costs = {"plain student": 1.0, "a": 2.0, "b": 1.7, "c": 1.05, "d": 1.3}
    students, line = equal_time.plan("step_seconds", costs, 100)
    assert [(student.name, student.steps) for student in students] == [
        ("plain student, 2.0x time", 200),
        ("plain student, 1.3x time", 130),
    ]
    assert students[0].reason.endswith("; it also stands for b")
    assert line.startswith("A step of c costs at most 1.1 plain steps")
    (only,), _ = equal_time.plan("step_seconds", {"plain student": 1.0, "a": 2.0}, 100)
    assert only.name == "plain student, 2.0x time"


def test_methods_that_read_scores_alone_use_a_cache_that_fits(config, tmp_path, monkeypatch):
    train = Trained(score)
    monkeypatch.setattr(parallel, "train_run", train)
    config = untuned(config)
    config.compare.cache = True
    config.compare.methods.nfd.nfd.update(student="stage4", teacher="stage4")
    sizes = [(180, 240)] * 100
    images = SimpleNamespace(train_sizes=lambda: sizes, num_classes=11)
    monkeypatch.setattr(cached_teacher, "RunData", lambda *_: images)
    run_comparison(config, str(tmp_path / "fits"), (0,))
    caches = {label: run.teacher.cache for label, run in train.configs.items()}
    assert caches.pop("cwd, seed 0") == str(tmp_path / "fits" / "teacher_cache")
    assert not any(caches.values())
    # 45 x 60 cells of 11 scores in 2 bytes.
    plan = cached_teacher.plan_cache(configuration.read(config), epath.Path("runs"), None)
    assert plan.line.startswith("the teacher's scores of 100 images take about 6 MiB, less than")
    monkeypatch.setattr(cached_teacher, "machine_bytes", lambda: 20 * 2**20)
    train.configs.clear()
    run_comparison(config, str(tmp_path / "large"), (0,))
    assert not any(run.teacher.cache for run in train.configs.values())
    plan = cached_teacher.plan_cache(configuration.read(config), epath.Path("runs"), None)
    assert plan.line.endswith("more than 25% of the memory, so every step runs the teacher")


def test_a_method_with_other_images_takes_no_cache_of_the_others(config, tmp_path, monkeypatch):
    train = Trained(score)
    monkeypatch.setattr(parallel, "train_run", train)
    config = untuned(config)
    config.compare.cache = True
    images = SimpleNamespace(train_sizes=lambda: [(180, 240)], num_classes=11)
    monkeypatch.setattr(cached_teacher, "RunData", lambda *_: images)
    with config.unlocked():
        config.compare.methods = ConfigDict(
            dict.fromkeys(("few", "flipped"), config.compare.methods.cwd) | {"plain": {}}
        )
        config.compare.changes = ConfigDict(
            {"few": {"data": {"train_split": "val"}}, "flipped": {"data": {"flip": False}}}
        )
    run_comparison(config, str(tmp_path), (0,))
    assert not train.configs["few, seed 0"].teacher.cache
    assert train.configs["flipped, seed 0"].teacher.cache


def test_runs_are_not_added_to_those_of_other_data(config, tmp_path, monkeypatch):
    seen = SimpleNamespace(fingerprint="a")
    real = Workdir.write_result
    monkeypatch.setattr(
        Workdir,
        "write_result",
        lambda self, result: real(self, result | {"data": seen.fingerprint}),
    )
    monkeypatch.setattr(parallel, "train_run", Trained(score))
    monkeypatch.setattr("kdjax.comparison.runs.open_images", lambda *_: seen)
    config = untuned(config)
    run_comparison(config, str(tmp_path), (0,))
    run_comparison(config, str(tmp_path), (0, 1))
    seen.fingerprint = "b"
    run_comparison(config, str(tmp_path), (0, 1))  # all there
    line = r"plain/seed0 was trained on other data \(a there, b now\); choose another --workdir"
    with pytest.raises(UserError, match=line):
        run_comparison(config, str(tmp_path), (0, 1, 2))


def test_the_teacher_that_a_comparison_trained_may_be_named_in_it(config, tmp_path, monkeypatch):
    train = Trained(score)
    monkeypatch.setattr(parallel, "train_run", train)
    run_comparison(untuned(config), str(tmp_path / "one"), (0,))
    config.teacher.checkpoint = str(tmp_path / "one" / "teacher")
    runs = run_comparison(config, str(tmp_path / "one"), (0,)).runs
    assert len(train.configs) == 6
    assert [files.path.parent.name for files in runs] == [
        "one",
        "plain",
        "cwd",
        "nfd",
        "2500_steps",
        "1800_steps",
    ]
    # But another one may not take its place.
    config.teacher.checkpoint = str(tmp_path / "other")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "network.json").write_text(described("other"))
    with pytest.raises(UserError, match=r"one/teacher contains another teacher that was trained"):
        run_comparison(config, str(tmp_path / "one"), (0,))


def test_a_wrong_group_is_found_before_anything_is_trained(config, tmp_path, monkeypatch):
    train = Trained(score)
    monkeypatch.setattr(parallel, "train_run", train)
    names = SimpleNamespace(names=lambda: ["day_1", "day_2"])
    data = SimpleNamespace(
        name="one",
        class_names=("a",),
        palette=np.zeros((1, 3), np.uint8),
        fingerprint="0",
        bands=RGB,
        splits=("train", "val", "test"),
        records=lambda split: names,
    )
    config.data.test_groups = ConfigDict({"night": "^nigth"})
    with pytest.raises(UserError, match=r'night "\^nigth" finds none of the 2 names in test'):
        run_comparison(config, str(tmp_path), (0,), data=data)
    assert not train.configs
    config.data.test_groups.night = "1$"
    run_comparison(config, str(tmp_path), (0,), data=data)
    assert train.configs


def test_methods_may_change_the_loss_and_the_crops(config, tmp_path, monkeypatch):
    train = Trained(score)
    monkeypatch.setattr(parallel, "train_run", train)
    config.compare.equal_time = False
    with config.unlocked():
        config.compare.methods = ConfigDict(
            {"weighted": {}, "plain": {}, "both": config.compare.methods.cwd}
        )
        config.compare.changes = ConfigDict(
            {
                "weighted": {"loss": {"class_weighting": "median_frequency"}},
                "both": {"loss": {"lovasz": 0.5}, "data": {"class_uniform": 0.25}},
            }
        )
    comparison = run_comparison(config, str(tmp_path), (0,))
    found = {
        name: (run.loss.class_weighting, run.loss.lovasz, run.data.class_uniform, bool(run.terms))
        for name, run in train.configs.items()
        if run.seed == 0 and name != "teacher"
    }
    assert found == {
        "plain, seed 0": ("given", 0.0, 0.0, False),
        "weighted, seed 0": ("median_frequency", 0.0, 0.0, False),
        "both, seed 0": ("given", 0.5, 0.25, True),
    }
    # Without terms, there are no weights to try, and no teacher.
    tuned = {name for name, run in train.configs.items() if run.seed in (7, 8)}
    assert not any(name.startswith("weighted") for name in tuned)
    assert sum(name.startswith("both") for name in tuned) == 6
    weighted = train.configs["weighted, seed 0"]
    assert (weighted.teacher.checkpoint, weighted.compare.changes) == ("", {})
    assert weighted.optimizer.learning_rate == 0.2  # the choice of the plain student
    assert [*comparison.students] == ["plain student", "weighted", "both"]


@pytest.mark.parametrize(
    ("seeds", "changes", "message"),
    [
        ((0, 1, 0), {}, "--seeds contains 0 twice"),
        ((0,), {"tuning_seeds": (7, 7)}, "config.compare.tuning_seeds contains 7 twice"),
        ((0, 7), {}, "Seed 7 is in --seeds and in config.compare.tuning_seeds"),
        ((0,), {"methods": {"plain": {}, "tuning": {}}}, 'cannot be named "tuning"'),
        (
            (0,),
            {"methods": {"plain": {}, "baseline": {}}},
            'methods "baseline" and "plain" both have no terms, so both are the plain student',
        ),
        ((0,), {"builds_on": {"cwd": "nfb"}}, 'builds_on names "nfb", .* did you mean "nfd"'),
    ],
)
def test_unfair_or_ambiguous_comparisons_are_refused(config, tmp_path, seeds, changes, message):
    with config.unlocked():
        config.compare.update(ConfigDict(changes))
    with pytest.raises(UserError, match=message):
        run_comparison(config, str(tmp_path), seeds)
    assert not list(tmp_path.iterdir())


def test_without_tuning_a_tuning_seed_may_be_reported(config, tmp_path, monkeypatch):
    config.compare.learning_rates = config.compare.weight_decays = ()
    config.compare.weight_factors = ()
    monkeypatch.setattr(parallel, "train_run", Trained(score))
    assert run_comparison(config, str(tmp_path), (7,)).runs


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_weights_that_are_not_here_are_missed_before_a_teacher_is_trained(
    config, tmp_path, monkeypatch, side
):
    train = Trained(score)
    monkeypatch.setattr(parallel, "train_run", train)
    config[side].update(configuration.network("upernet_swin_t"))
    config[side].backbone = "imagenet"
    with pytest.raises(UserError, match=rf'config.{side}.backbone is "imagenet", and no ImageNet'):
        run_comparison(config, str(tmp_path), (0,))
    assert not train.configs


def test_the_teacher_starts_from_what_its_section_says(config, tmp_path, monkeypatch):
    train = Trained(score)
    monkeypatch.setattr(parallel, "train_run", train)
    monkeypatch.setattr(imagenet, "find", lambda options, where: None)
    config.compare.learning_rates = config.compare.weight_decays = ()
    config.compare.weight_factors = ()
    config.teacher.backbone, config.student.backbone = "imagenet", "pretrained/r18"
    run_comparison(config, str(tmp_path), (0,))
    starts = {name: found.student.backbone for name, found in train.configs.items()}
    assert starts.pop("teacher") == "imagenet"
    assert set(starts.values()) == {"pretrained/r18"}
    assert Workdir(tmp_path / "teacher").read_options().student.backbone == "imagenet"


def test_a_diverged_run_is_noted_and_the_others_go_on(config, tmp_path, monkeypatch):
    def breaks(run):
        nfd = "nfd" in run.terms and (run.terms["nfd"].weight < 2 or run.seed == 1)
        return NAN if nfd else score(run)

    train = Trained(breaks)
    monkeypatch.setattr(parallel, "train_run", train)
    comparison = run_comparison(config, str(tmp_path), (0, 1))
    assert train.configs["nfd, seed 0"].terms["nfd"].weight == 3.0
    assert [run.path.name for run in comparison.runs if "nfd" in str(run.path)] == ["seed0"]
    assert comparison.notes[-3] == "nfd, seed 1: the run diverged: loss is nan at step 3"
    assert "weight_x0.5 diverged, weight_x1 " in comparison.notes[-4]
    before = len(train.configs)
    assert run_comparison(config, str(tmp_path), (0, 1)).notes == comparison.notes
    assert len(train.configs) == before


def test_a_method_that_diverges_at_every_weight_is_left_out(config, tmp_path, monkeypatch):
    train = Trained(lambda run: NAN if "nfd" in run.terms else score(run))
    monkeypatch.setattr(parallel, "train_run", train)
    comparison = run_comparison(config, str(tmp_path), (0,))
    assert list(comparison.students) == ["plain student", "cwd"]
    assert comparison.notes[-2].endswith("all diverged")


def test_a_plain_student_that_always_diverges_ends_it(config, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "train_run", Trained(lambda run: NAN if run.seed > 1 else 0.1))
    with pytest.raises(UserError, match=r"all diverged; try lower config.compare.learning_rates"):
        run_comparison(config, str(tmp_path), (0,))


@pytest.mark.parametrize("name", ["/cwd", "a/b", "", "two\nlines", 3])
def test_a_method_has_the_name_of_a_folder(config, tmp_path, monkeypatch, name):
    monkeypatch.setattr(parallel, "train_run", Trained(score))
    with config.unlocked():
        config.compare.methods = ConfigDict({name: {}})
    with pytest.raises(UserError, match=r"A method cannot be named .*, because its folder"):
        run_comparison(config, str(tmp_path), (0,))
    assert not list(tmp_path.iterdir())


def test_a_grid_needs_the_plain_student(config, tmp_path):
    with config.unlocked():
        del config.compare.methods["plain"]
    with pytest.raises(UserError, match=r"'plain': \{\}"):
        run_comparison(config, str(tmp_path), (0,))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([[0.1, 0.3], [0.25, 0.25], [0.2, 0.2]], 1),
        ([[0.9, NAN], [0.1, 0.1], [0.2, 0.2]], 2),
        ([[0.2], [0.2], [0.1]], 0),
        ([[NAN], [NAN], [NAN]], None),
    ],
)
def test_the_choice_is_the_highest_mean_of_settings_that_hold(scores, best):
    found = TuningResult("plain", RATES, scores).best()
    assert found == (None if best is None else RATES[best])


def test_a_choice_at_the_edge_of_the_tried_values_says_so():
    assert TuningResult("plain", RATES, [[0.1], [0.2], [0.1]]).edges() == []
    assert TuningResult("plain", RATES, [[0.3], [0.2], [0.1]]).edges() == ["learning_rate"]
    assert tuning.setting_name(RATES[1], RATES) == "lr0.2"


def test_each_of_several_runs_has_devices_of_its_own(monkeypatch):
    cores = os.sched_getaffinity(0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7,8")
    shares = parallel._device_shares(2)
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares] == ["4,5", "6,7"]
    given = [set(share[parallel.CORES].split(",")) for share in shares]
    assert set.union(*given) == set(map(str, cores))
    assert len(cores) == 1 or not set.intersection(*given)
    with pytest.raises(UserError, match="--parallel is 6, but there are 5 GPUs"):
        parallel._device_shares(6)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(environment, "tpu_chips", lambda: ["0", "1"])
    shares = parallel._device_shares(2)
    assert [share["TPU_VISIBLE_CHIPS"] for share in shares] == ["0", "1"]
    assert shares[0]["TPU_PROCESS_BOUNDS"] == "1,1,1"


def test_a_run_survives_the_way_to_another_process(config):
    run = Run(configuration.read(config), Workdir("/some/where"), "cwd, seed 3", "cwd", "distilled")
    again = parallel.from_json(parallel.to_json(run))
    assert again.options == run.options
    assert again.files.path == run.files.path
    assert (again.name, again.method, again.role) == (run.name, run.method, run.role)


def fake_python(tmp_path, monkeypatch, script):
    """Replaces Python by a program that records each start with its cores and runs `script`."""
    path, notes = tmp_path / "python", tmp_path / "notes"
    path.write_text(f'#!/bin/sh\ncat > /dev/null\necho "${parallel.CORES}" >> {notes}\n{script}\n')
    path.chmod(0o755)
    monkeypatch.setattr(parallel.sys, "executable", str(path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {4, 5})
    return notes


def four_runs(config, tmp_path):
    return [
        Run(configuration.read(config), Workdir(tmp_path / name), name, name, "plain")
        for name in ("one", "two", "three", "four")
    ]


def test_runs_at_once_that_fail_are_named(config, tmp_path, monkeypatch):
    notes = fake_python(tmp_path, monkeypatch, "exit 2")
    with pytest.raises(UserError, match=r"4 of 4 runs failed: one, two, three, four"):
        parallel.train_all(four_runs(config, tmp_path), parallel=2)
    assert set(notes.read_text().split()) == {"4", "5"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_runs_under_way_and_no_other_begins(
    config, tmp_path, monkeypatch, number
):
    """Ctrl-C is passed on as SIGTERM, which asks the runs to save and stop."""
    trap = f"trap 'echo asked >> {tmp_path}/asked; exit 75' TERM; trap 'exit 130' INT"
    notes = fake_python(tmp_path, monkeypatch, f"{trap}\nwhile :; do sleep 0.1; done")

    def stop():
        while not notes.exists() or len(notes.read_text().split()) < 2:
            time.sleep(0.01)
        time.sleep(0.3)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop).start()
    with pytest.raises(Preempted, match="have saved"):
        parallel.train_all(four_runs(config, tmp_path), parallel=2)
    assert len(notes.read_text().split()) == 2
    assert (tmp_path / "asked").read_text().split() == ["asked"] * 2


def test_a_failure_that_may_pass_is_transient(config, tmp_path, monkeypatch):
    fake_python(tmp_path, monkeypatch, "exit 75")
    with pytest.raises(Transient, match=r"4 of 4 runs failed: one, two, three, four"):
        parallel.train_all(four_runs(config, tmp_path), parallel=2)


RUN = """
import os, signal, sys, time
from kdjax.utils import processes
def say(word):  # in one piece: both runs write to one pipe at once
    os.write(1, f"{word} {os.getpid()}\\n".encode())
signal.signal(signal.SIGTERM, lambda *_: (say("asked"), sys.exit(75)))
processes.end_with_parent()
say("runs")
time.sleep(100)
"""

COMPARISON = """
import os, subprocess, sys
from kdjax import config
from kdjax.comparison import parallel
from kdjax.experiment.run import Run
from kdjax.experiment.workdir import Workdir
start = subprocess.Popen
def pretend(command, **options):
    return start([command[0], "-c", os.environ["RUN"]], **options)
subprocess.Popen = pretend
files = [Workdir(f"{sys.argv[1]}/{name}") for name in ("one", "two", "three")]
plan = lambda run: Run(config.read(config.default()), run, "a run", "plain", "plain")
parallel.train_all([*map(plan, files)], 2)
"""


@pytest.mark.thorough
def test_the_runs_of_a_comparison_that_is_killed_are_asked_to_stop(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", COMPARISON, tmp_path],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"RUN": RUN},
    ) as comparison:
        runs = {comparison.stdout.readline().removeprefix("runs ") for _ in range(2)}
        comparison.kill()
        # Those that it started end the pipe.
        said = comparison.stdout.read().splitlines(keepends=True)
    assert {line.removeprefix("asked ") for line in said} == runs
