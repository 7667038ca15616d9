"""Networks of any framework: training, checkpoints, and predictions."""

import functools

import existing_networks
import jax
import numpy as np
import optax
import own_networks
import pytest
import thorough
from flax import nnx
from small_step import make_batch

from kdjax import models
from kdjax.deployment.formats import make_predict_fn
from kdjax.distillation import Distiller, term
from kdjax.evaluation.evaluator import Predictor
from kdjax.models import (
    LinenNetwork,
    NNXNetwork,
    make_network,
    maps_of,
    network_of,
    scores_of,
    serialization,
)
from kdjax.models.batch_norm import with_batch_norm
from kdjax.models.network import arrays_by_path, trace_maps
from kdjax.models.outputs import IMAGENET
from kdjax.training import Placement
from kdjax.training.optimizer import OptimizerOptions, learning_rate_schedule, make_optimizer
from kdjax.training.step import Objective, PreprocessedNetwork, create_state, make_train_step
from kdjax.utils.errors import UserError

KINDS = ("InNNX", "InLinen", "bridged", "Plain")
BLANK = np.zeros((1, 32, 32, 3), np.float32)
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)


def made(kind, **options):
    network = make_network(f"own_networks:{kind}", num_classes=3, **options)
    return network, network.init(jax.random.key(0), BLANK)


@functools.cache
def compiled(network, train):
    return jax.jit(functools.partial(network.apply, train=train))


def forward(network, variables, *, train, seed=0):
    key = jax.random.key(seed) if train else None
    return compiled(network, train)(variables, IMAGENET(IMAGES), key=key)


@pytest.mark.parametrize("kind", thorough.after(2, KINDS))
def test_a_network_of_ones_own_learns_from_a_teacher(kind, tmp_path):
    network, variables = made(kind, options={"channels": 4})
    teacher_network = made("Plain")
    maps = {
        "student": trace_maps(network, variables, (16, 16), train=True),
        "teacher": trace_maps(*teacher_network, (16, 16), train=False),
    }
    distiller = Distiller({"cwd": term("cwd")}, **maps)
    settings = OptimizerOptions()
    optimizer = make_optimizer(settings, 10)
    state = create_state(variables, distiller.init(jax.random.key(0)), optimizer, ema=True)
    step = jax.jit(
        make_train_step(
            PreprocessedNetwork(network, IMAGENET),
            PreprocessedNetwork(teacher_network[0], IMAGENET),
            Objective(1.0, 0.4, distiller),
            optimizer,
            learning_rate_schedule(settings, 10),
            steps=10,
            ema_decay=0.5,
        )
    )
    after, metrics = step(state, teacher_network[1], make_batch())
    assert np.isfinite(float(metrics["cwd"]))
    # All parameters changed, and some of the state: running statistics, counts of draws and steps.
    for part, enough in (("model_state", any), ("params", all)):
        old, new = (jax.tree.leaves(jax.device_get(getattr(s, part))) for s in (state, after))
        assert enough([not np.array_equal(*pair) for pair in zip(old, new, strict=True)]), part

    # The checkpoint alone restores it, and it predicts as before.
    info = serialization.NetworkInfo(
        f"own_networks:{kind}", 3, 64, True, tuple("abc"), ((0, 0, 0),) * 3, options={"channels": 4}
    )
    trained = after.student()
    info = serialization.save(tmp_path, info, trained)
    again, loaded, found = serialization.load(tmp_path)
    assert found == info
    expected = Predictor(network, IMAGENET)(trained, IMAGES)
    np.testing.assert_array_equal(Predictor(again, IMAGENET)(loaded, IMAGES), expected)
    np.testing.assert_array_equal(make_predict_fn(again, loaded, IMAGENET)(IMAGES), expected)


def test_a_teacher_of_another_framework_on_any_number_of_devices():
    student, teacher = made("Plain"), made("Elsewhere")
    maps = {
        "student": trace_maps(*student, (16, 16), train=True),
        "teacher": trace_maps(*teacher, (16, 16), train=False),
    }
    distiller = Distiller({"cwd": term("cwd")}, **maps)
    optimizer = optax.sgd(0.1)
    step = make_train_step(
        PreprocessedNetwork(student[0], IMAGENET),
        PreprocessedNetwork(teacher[0], IMAGENET),
        Objective(1.0, 0.0, distiller),
        optimizer,
        optax.constant_schedule(0.1),
        steps=10,
    )
    state, batch = create_state(student[1], ({}, {}), optimizer, ema=False), make_batch()
    found = []
    for devices in (jax.devices()[:1], jax.devices()):
        placement = Placement(devices=devices)
        arrays = placement.put_state(state), {}, placement.put_batch(batch)
        found.append(jax.jit(step)(*arrays)[1]["cwd"])
    np.testing.assert_allclose(*found, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_trains_draws_and_what_predicts_does_not(kind):
    network, variables = made(kind)
    first, after = forward(network, variables, train=False)
    assert serialization.fingerprint(after) == serialization.fingerprint(variables)
    np.testing.assert_array_equal(
        scores_of(first), scores_of(forward(network, variables, train=False)[0])
    )
    drawn = [scores_of(forward(network, variables, train=True, seed=seed)[0]) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], scores_of(first))
    # NNX draws from the random state of the module, the others from the key of the step.
    assert np.array_equal(drawn[0], drawn[2]) == (kind == "InNNX")


def test_the_kinds_are_recognized():
    assert isinstance(made("InNNX")[0], NNXNetwork)
    assert isinstance(made("InLinen")[0], LinenNetwork)
    assert isinstance(made("bridged")[0], LinenNetwork)
    params = made("InLinen")[1]["params"]
    assert set(arrays_by_path(params)) == set(arrays_by_path(made("bridged")[1]["params"]))
    assert made("narrow")[1]["params"]["stem"]["kernel"].shape == (3, 3, 3, 2)
    with pytest.raises(TypeError, match="it is a dict; it must be a module of Flax NNX or Linen"):
        network_of({})


@pytest.mark.parametrize("name", ["module", "stored"])
def test_training_leaves_a_users_own_arrays_alone(name):
    network = network_of(getattr(existing_networks, name))
    variables = network.init(jax.random.key(0), BLANK)
    state = create_state(variables, ({}, {}), optax.sgd(0.1), ema=True)
    step = make_train_step(
        PreprocessedNetwork(network, IMAGENET),
        PreprocessedNetwork(network, IMAGENET),
        Objective(1.0, 0.0, None),
        optax.sgd(0.1),
        optax.constant_schedule(0.1),
        steps=10,
        ema_decay=0.5,
    )
    # On a CPU, JAX keeps the buffers of arrays that NumPy reads, so nothing is fetched before.
    placement = Placement(devices=jax.devices()[:1])
    # Like `kdjax.training.loop.fit`, with the same arrays for the teacher.
    step = jax.jit(step, donate_argnums=0)
    step(placement.put_state(state), placement.put_state(variables), make_batch())
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(variables))
    forward(network, network.init(jax.random.key(1), BLANK), train=False)


def test_a_module_that_was_left_in_eval_mode_trains_as_any_other():
    module = existing_networks.in_eval_mode
    network, variables = NNXNetwork.of(module)
    _, after = forward(network, variables, train=True)
    assert np.abs(after["state"]["norm"]["mean"] - variables["state"]["norm"]["mean"]).max() > 0
    first, second = (forward(network, v, train=True)[0]["head"] for v in (variables, after))
    assert not np.array_equal(first == 0, second == 0), "dropout draws"
    assert module.norm.use_running_average, "the module itself stays as it was"


def test_a_network_without_arrays_is_told_by_what_it_says(monkeypatch, capsys):
    def fingerprint():
        return serialization.load("own_networks:Elsewhere")[2].fingerprint

    first = fingerprint()
    assert first == fingerprint() != serialization._hash({})
    weaker = staticmethod(lambda images: 0.98 * np.asarray(images)[:, ::4, ::4] ** 3)
    monkeypatch.setattr(own_networks.Elsewhere, "_run", weaker)
    assert fingerprint() != first
    noise = staticmethod(lambda images: (1 + 1e-6) * np.asarray(images)[:, ::4, ::4] ** 3)
    monkeypatch.setattr(own_networks.Elsewhere, "_run", noise)
    assert fingerprint() == first

    def broken(images):
        raise ValueError("needs 512 x 512")

    monkeypatch.setattr(own_networks.Elsewhere, "_run", staticmethod(broken))
    assert fingerprint() == serialization._hash({})
    said = capsys.readouterr().out
    assert "own_networks:Elsewhere fails on images of (64, 64)" in said
    assert "needs 512 x 512" in said


def test_an_ensemble_brings_its_variables_and_its_classes():
    network, variables, info = serialization.load("own_networks:trained")
    assert info.class_names == ("a", "b", "c")
    assert info.num_classes == len(info.palette) == 3
    assert info.fingerprint == serialization.fingerprint(variables)
    assert forward(network, variables, train=False)[0].shape == (2, 8, 8, 3)
    with pytest.raises(
        UserError, match="sets its dtype by itself; kdjax cannot change it to bfloat16"
    ):
        serialization.load("own_networks:trained", dtype="bfloat16")
    with pytest.raises(UserError, match='has no "trainde"; did you mean "trained"'):
        serialization.load("own_networks:trainde")


def test_batch_statistics_of_parts_need_the_batch_norm_that_has_them():
    network, variables = made("Grouped")
    images = np.arange(4 * 8 * 8 * 3, dtype=np.float32).reshape(4, 8, 8, 3)
    whole, parts = (
        compiled(net, train=True)(variables, images, key=jax.random.key(0))[0]
        for net in (network, with_batch_norm(network, "per_device", 2))
    )
    alone, _ = compiled(network, train=True)(variables, images[:2], key=jax.random.key(0))
    np.testing.assert_allclose(parts[:2], alone, rtol=1e-4, atol=1e-5)
    assert np.abs(whole - parts).max() > 0.1
    for kind in ("InNNX", "InLinen"):
        with pytest.raises(UserError, match=r"per_device.*needs a network of Flax NNX with kdjax"):
            with_batch_norm(made(kind)[0], "per_device", 2)


def test_a_frozen_backbone_keeps_its_statistics_while_the_head_takes_those_of_the_batch():
    net = models.create("tiny", num_classes=3, width=4, auxiliary=False, rngs=nnx.Rngs(0))
    network, variables = NNXNetwork.of(net)
    frozen = with_batch_norm(network, "frozen", 1)
    images = 5 * jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    _, after = compiled(frozen, train=True)(variables, images, key=jax.random.key(0))
    before, after = variables["state"], after["state"]
    jax.tree.map(np.testing.assert_array_equal, after["backbone"], before["backbone"])
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), after["head"], before["head"])
    assert all(jax.tree.leaves(moved))
    for kind in ("InNNX", "Grouped"):
        with pytest.raises(UserError, match=r'"frozen".*BatchNorm in its "backbone"; set it to'):
            with_batch_norm(made(kind)[0], "frozen", 1)


def traced(name, **settings):
    network = make_network(name, num_classes=3, where="config.student", **settings)
    variables = network.init(jax.random.key(0), BLANK)
    return trace_maps(network, variables, (32, 32), train=True, name="config.student")


@pytest.mark.parametrize("options", [{}, {"num_classes": 3}])
def test_a_checkpoint_calls_nothing_but_factories_of_networks(options, tmp_path):
    ran = tmp_path / "ran"
    info = serialization.NetworkInfo(
        "subprocess:call",
        *(3, 64, True, tuple("abc"), ((0, 0, 0),) * 3),
        options={"args": ["touch", str(ran)], **options},
    )
    _, variables = made("Plain")
    serialization.save(tmp_path, info, variables)
    with pytest.raises(UserError, match=r"network.json: .* is no factory of networks"):
        serialization.load(tmp_path)
    assert not ran.exists()


FAULTS = {
    "raises in evaluation": r"fails in evaluation on images .*: RuntimeError: no predictions$",
    "evaluates two images": r"logits are \[2, 4, 4, 3\] for 4 images; they must be \[4, h, w, K\]",
    "no rows": r"logits are \[4, 0, 4, 3\] for 4 images; .* without empty axes",
    "integer": "logits are int32; they must be floating-point",
    "complex": 'its map "logits" is complex64; maps must be real',
    "complex map": 'its map "phase" is complex64; maps must be real',
    "state grows": r'turns "steps" of its state from int32 \[\] into float32 \[2\]; names, shapes',
    "state goes": r'turns "steps" of its state from int32 \[\] into nothing; names, shapes',
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_ones_own_network_are_found_by_tracing(fault):
    network = make_network("own_networks:Faulty", num_classes=3, options={"fault": fault})
    variables = network.init(jax.random.key(0), BLANK)
    train = "evaluat" not in fault
    with pytest.raises(UserError, match=FAULTS[fault]) as error:
        trace_maps(network, variables, (16, 16), train=train, batch=4)
    assert "\n" not in str(error.value)


def test_mistakes_in_ones_own_network_are_one_line():
    def refused(name, message, **settings):
        with pytest.raises(UserError, match=message) as error:
            traced(f"own_networks:{name}", **settings)
        assert "\n" not in str(error.value)

    refused("exits", r"config\.student\.name names .*own_networks:exits.*SystemExit: 0")
    refused("broken", r"config\.student\.name names .*own_networks:broken.*no such weights")
    refused(
        "of_two_axes",
        r"its logits are \[2, 192\] for 2 images; they must be \[2, h, w, K\], channels last",
    )
    refused("InLinen", r"options\.chanels is no argument of .*\"channels\"", options={"chanels": 1})
    refused("InLinen", r"config\.student\.width is 16, and .* takes no width", width=16)
    refused("Plain", r"config\.student\.dtype is 'bfloat16', and .* takes no", dtype="bfloat16")
    refused("IMAGES", 'has no "IMAGES"')
    with pytest.raises(TypeError, match=r"its output must be the class scores.*it is list"):
        maps_of([])
    with pytest.raises(TypeError, match=r"it is an empty dict"):
        maps_of({})
