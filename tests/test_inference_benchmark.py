"""`benchmarks.inference`: kdjax's forward pass and `predict` beside PyTorch."""

import pathlib

import numpy as np
import pytest
from PIL import Image

import kdjax

pytest.importorskip("torch", reason="compares with PyTorch")
import torch

from benchmarks import inference
from benchmarks.torch import predict as torch_predict

pytestmark = pytest.mark.torch


def test_forward_passes_agree_and_are_compared():
    row = inference.forward("lite0", (33, 49), 1, compiled=False)
    assert row.startswith("| lite0, 1 x 33 x 49 | ")
    assert row.endswith(" | – |")


def test_both_sides_write_the_same_labels(tmp_path, monkeypatch):
    commands = inference.write_networks(tmp_path)
    inference.write_photos(tmp_path / "photos", 3, (48, 64))
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    kdjax.predict(tmp_path / "kdjax", str(tmp_path / "photos"), ours)
    threads = torch.get_num_threads()
    words = commands["PyTorch"](tmp_path / "photos", theirs)
    monkeypatch.setattr("sys.argv", words[2:])
    torch_predict.main()
    assert torch.get_num_threads() == threads
    inference.check_labels(ours, theirs)
    _check_overlays(ours, theirs)
    _invert(theirs / "labels" / "000.png")
    with pytest.raises(AssertionError, match=r"of the labels differ"):
        inference.check_labels(ours, theirs)


def _check_overlays(*outputs: pathlib.Path) -> None:
    names = [f"{number:03}.png" for number in range(3)]
    for output in outputs:
        assert sorted(path.name for path in (output / "overlays").iterdir()) == names
    one, other = (np.array(Image.open(output / "overlays" / names[0])) for output in outputs)
    # Where two classes have nearly the same score, a pixel may have another color.
    assert np.mean(one != other) <= 3 * inference.DIFFERENT


def _invert(path: pathlib.Path) -> None:
    picture = Image.open(path)
    Image.fromarray(255 - np.array(picture)).save(path)
