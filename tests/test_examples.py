"""The examples run as they stand."""

import os
import pathlib
import runpy
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kdjax import config as configuration
from kdjax import models
from kdjax.data.run_data import RunData
from kdjax.distillation import Distiller
from kdjax.experiment import run
from kdjax.experiment.workdir import Workdir
from kdjax.models import make_network, serialization
from kdjax.models.network import trace_maps
from kdjax.models.serialization import NetworkInfo
from kdjax.utils import config_file

EXAMPLES = pathlib.Path(__file__).resolve().parent.parent / "examples"


def test_own_losses_are_terms_of_a_config_beside_them(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    config = config_file.read(str(EXAMPLES / "own_loss.py"))
    # Processes that are started later find them too.
    assert os.environ["PYTHONPATH"].split(os.pathsep)[:2] == ["elsewhere", str(EXAMPLES)]
    configuration.read(config)
    again = configuration.from_json(configuration.to_json(config))
    maps = {
        side: {"head": jnp.ones((2, 4, 4, 3)), "stage4": jnp.ones((2, 4, 4, channels))}
        for side, channels in (("student", 2), ("teacher", 5))
    }
    distiller = Distiller(again.terms, **maps)
    params, state = distiller.init(jax.random.key(0))
    assert params["mgd"]["loss"]["first"].shape == (3, 3, 5, 5)
    loss, (_, metrics) = distiller(
        params, state, *maps.values(), step=0, steps=1, key=jax.random.key(1)
    )
    assert metrics["hint"] == 0
    assert 0 <= float(metrics["mgd/kept"]) <= 1
    assert float(loss) == pytest.approx(float(metrics["mgd"]), rel=1e-6)


@pytest.mark.thorough
def test_own_data_train_by_their_name(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "")
    config = config_file.read(str(EXAMPLES / "own_data.py"))
    config.update({"steps": 3, "eval_every": 3, "log_every": 1})
    config.student.update(configuration.network("tiny", width=4))
    config.data.batch_size = 8
    run.train_run(
        run.Run(configuration.read(config), run.Workdir(tmp_path), "own", "student", "plain")
    )
    assert Workdir(tmp_path).read_result()["scores"]["val"]["miou"] > 0
    images = RunData(config.data)
    assert images.class_names == ("ground", "disc", "square")
    assert len(images.sizes("train")) == 128
    (example, *_) = images.panel_examples()
    assert example["name"] == "0.jpg"
    assert set(np.unique(example["label"])) >= {0, 255}


def test_a_plain_loop(capsys):
    lines = len((EXAMPLES / "plain_loop.py").read_text().splitlines())
    assert lines <= 150
    runpy.run_path(str(EXAMPLES / "plain_loop.py"))["main"](4)
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].startswith("distilled: ")
    assert any("maps/dead_teacher_channels" in line for line in printed)


def traced_maps(name, monkeypatch):
    """The config of an example, and the maps of its student."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    config = config_file.read(str(EXAMPLES / f"{name}.py"))
    configuration.read(config)
    again = configuration.from_json(configuration.to_json(config))
    settings = {
        key: again.student[key] for key in ("name", "width", "auxiliary", "dtype", "options")
    }
    network = make_network(**settings, num_classes=5)
    variables = network.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    return config, trace_maps(network, variables, (32, 32), train=True)


def test_a_network_of_ones_own_in_linen(monkeypatch):
    config, maps = traced_maps("own_network_linen", monkeypatch)
    shapes = {name: value.shape[1:] for name, value in maps.items()}
    assert shapes == {"logits": (8, 8, 5), "head": (8, 8, 48), "coarse": (4, 4, 96)}
    assert config.terms.features.student == "coarse"


def test_a_network_of_ones_own_in_equinox(monkeypatch):
    pytest.importorskip("equinox", reason="Equinox is not installed")
    _, maps = traced_maps("own_network_equinox", monkeypatch)
    shapes = {name: value.shape[1:] for name, value in maps.items()}
    assert shapes == {"logits": (4, 4, 5), "head": (4, 4, 64)}


def test_an_ensemble_of_teachers(monkeypatch, tmp_path):
    outputs = []
    for seed in (0, 1):
        net = models.create("tiny", num_classes=3, width=4, rngs=nnx.Rngs(seed))
        network, variables = models.NNXNetwork.of(net)
        info = NetworkInfo("tiny", 3, 4, True, ("a", "b", "c"), ((0, 0, 0),) * 3)
        serialization.save(tmp_path / str(seed), info, variables)
        images = jax.random.normal(jax.random.key(2), (1, 16, 16, 3))
        outputs.append(network.apply(variables, images, train=False, key=None)[0].logits)
    monkeypatch.setenv("TEACHERS", f"{tmp_path / '0'}:{tmp_path / '1'}")
    monkeypatch.setattr(sys, "path", [*sys.path])
    config = config_file.read(str(EXAMPLES / "ensemble_of_teachers.py"))
    configuration.read(config)
    teacher, variables, info = serialization.load(config.teacher.checkpoint)
    assert info.class_names == ("a", "b", "c")
    found, _ = teacher.apply(variables, images, train=False, key=None)
    mean = (jax.nn.softmax(outputs[0]) + jax.nn.softmax(outputs[1])) / 2
    assert jnp.allclose(jax.nn.softmax(found), mean, atol=1e-6)
