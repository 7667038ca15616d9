"""The PyTorch trainer of `benchmarks/torch` beside kdjax, as `benchmarks.train_step` runs them."""

import json

import pytest
from absl import flags
from absl.testing import flagsaver

from kdjax.config import term
from kdjax.recipes import methods

pytest.importorskip("torch", reason="compares with PyTorch")
from benchmarks import alone, train_step
from benchmarks.work import Work

pytestmark = pytest.mark.torch

# Every loss of the PyTorch trainer; the heads have other channels, so that two learn adapters.
TERMS = {
    "cwd": term("cwd"),
    "cwd_features": term("cwd", student="head", teacher="head"),
    "pixelwise_kl": term("pixelwise_kl", temperature=2.0),
    "gap": term("gap_weighted_kl"),
    "nfd": term("nfd"),
    "pfs": term("pfs"),
}
TINY = Work(
    teacher_depth=18,
    teacher_width=4,
    student_depth=18,
    student_width=2,
    classes=19,
    crop=(49, 65),
    batch_size=2,
    dtype="float32",
    terms=TERMS,
)
FLAGS = [
    "--methods=every",
    "--teacher_depth=18",
    "--teacher_width=4",
    "--student_width=2",
    "--crop=49,65",
    "--batch_size=2",
    "--rounds=2",
]


@pytest.fixture
def given_flags():
    with flagsaver.flagsaver():
        flags.FLAGS(["train_step", *FLAGS])
        yield


def test_the_sides_have_the_same_losses_and_their_steps_are_compared(
    given_flags, monkeypatch, capsys
):
    monkeypatch.setitem(methods.METHODS, "every", TERMS)
    figures = {"kdjax": 3.0, "pytorch": 2.0}
    monkeypatch.setattr(
        train_step,
        "alone",
        lambda side, work: dict.fromkeys(("seconds", "peak", "stepping"), figures[side] * 2**20),
    )
    train_step.main([])
    printed = capsys.readouterr().out
    assert "PSPNet-R18 (width 4) teaches R18 (width 2), 2 x 49 x 65, float32." in printed
    assert "Worst relative difference in 5 steps of float32: loss " in printed
    assert all(f", {name} " in printed for name in TERMS)
    assert "\n| every | " in printed
    assert "| peak of the process, MiB | 3.0 | 2.0 | 1.50 |" in printed


def test_a_side_alone_tells_its_memory(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["alone", "pytorch", TINY.to_json(), "1"])
    alone.main()
    found = json.loads(capsys.readouterr().out)
    assert found["peak"] >= found["stepping"] > 2**20
