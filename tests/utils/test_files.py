"""Paths in object stores stay what they are, up to the library that writes to them."""

import contextlib
import os
from types import SimpleNamespace

import orbax.checkpoint as ocp
import pytest
from etils import epath

from kdjax import config as configuration
from kdjax.experiment.workdir import Workdir
from kdjax.models import serialization
from kdjax.training.checkpoints import Checkpoints
from kdjax.utils.errors import UserError
from kdjax.utils.files import absolute, is_remote


def test_local_paths_become_absolute_and_those_of_stores_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(absolute("runs/a")) == str(tmp_path / "runs" / "a")
    assert str(absolute("gs://bucket/runs/a")) == "gs://bucket/runs/a"
    assert [is_remote(path) for path in ("runs/a", tmp_path, "gs://bucket/runs/a")] == [0, 0, 1]


class Asked(Exception):
    """Holds the path that Orbax was asked to use."""


def ask(path, *args, **kwargs):
    raise Asked(str(path))


def test_checkpoints_go_to_the_store(monkeypatch):
    monkeypatch.setattr(ocp, "CheckpointManager", ask)
    # It would look into the store first, and there is none.
    monkeypatch.setattr(Checkpoints, "_drop_damaged_scores", lambda self: [])
    with pytest.raises(Asked, match=r"^gs://bucket/run/checkpoints$"):
        Checkpoints("gs://bucket/run/checkpoints", {})


def test_networks_go_to_the_store(monkeypatch):
    orbax = contextlib.nullcontext(SimpleNamespace(save=ask))
    monkeypatch.setattr(serialization, "local_checkpointer", lambda: orbax)
    # Its files would be TensorFlow's, and not the mock's.
    monkeypatch.setattr(epath.gpath, "_is_tf_installed", lambda: False)

    def done(function, path, **options):
        assert str(path).startswith("gs://bucket/net")

    info = serialization.NetworkInfo("tiny", 1, 4, False, ("a",), ((0, 0, 0),))
    with (
        epath.testing.mock_epath(exists=lambda *args: False, makedirs=done, remove=done),
        pytest.raises(UserError, match=r"^cannot write gs://bucket/net: gs://bucket/net/param"),
    ):
        serialization.save("gs://bucket/net", info, {"params": {}, "state": {}})


@pytest.mark.parametrize("opens", [serialization.load, Workdir])
def test_a_store_that_does_not_answer_is_one_line(monkeypatch, opens):
    monkeypatch.setattr(epath.gpath, "_is_tf_installed", lambda: False)
    # Elsewhere TensorFlow opens it, and is set up before.
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)

    def fail(*args):
        assert os.environ["TF_ENABLE_ONEDNN_OPTS"] == "0"
        raise RuntimeError("no such host\nand a long story")

    with (
        epath.testing.mock_epath(exists=fail),
        pytest.raises(
            UserError, match=r"^gs://bucket/run: the store does not answer: no such host$"
        ),
    ):
        opens("gs://bucket/run")


def test_what_a_store_does_not_take_is_one_line(monkeypatch):
    monkeypatch.setattr(epath.gpath, "_is_tf_installed", lambda: False)

    def fail(*args, **options):
        raise RuntimeError("forbidden")

    with (
        epath.testing.mock_epath(
            exists=lambda *args: False, makedirs=lambda *args, **options: None, open=fail
        ),
        pytest.raises(UserError, match=r"^cannot write to --workdir gs://bucket/run: forbidden$"),
    ):
        Workdir("gs://bucket/run").claim(configuration.read(configuration.default()))
