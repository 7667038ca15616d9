"""Networks: settings, layers that parity depends on, and checkpoints."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax._src.interpreters import partial_eval

from kdjax import models
from kdjax.models import NNXNetwork, layers, pyramids, serialization
from kdjax.models.adapters import traced_rngs
from kdjax.models.serialization import NetworkInfo
from kdjax.utils.errors import UserError

# No test here depends on depth.
pytestmark = pytest.mark.usefixtures("shallow")


@nnx.jit
def run(net, images):
    return net(images).logits


def tiny(**changes):
    settings = {"num_classes": 5, "width": 4, "rngs": nnx.Rngs(0)} | changes
    return models.create("pspnet_r18", **settings)


def test_training_updates_running_statistics_and_evaluation_does_not():
    net = tiny()
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    before = jax.tree.map(np.asarray, nnx.state(net, nnx.BatchStat))
    run(net, images)
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(net, nnx.BatchStat))
    nnx.jit(lambda net, x: net(x, train=True, rngs=nnx.Rngs(dropout=0)).logits)(net, images)
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, nnx.state(net, nnx.BatchStat))
    assert all(jax.tree.leaves(changed))


def test_bfloat16_computes_in_bfloat16_with_float32_parameters():
    net = tiny(dtype="bfloat16")
    assert nnx.eval_shape(run, net, jnp.ones((1, 32, 32, 3))).dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(net))} == {jnp.dtype("float32")}


def test_same_seed_same_network():
    jax.tree.map(np.testing.assert_array_equal, nnx.state(tiny()), nnx.state(tiny()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "pspnet_r19"}, 'unknown network "pspnet_r19": did you mean "pspnet_r1'),
        ({"width": 7}, "width is 7; it must be even"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"dtype": "float16"}, 'dtype is "float16"'),
    ],
)
def test_bad_settings(changes, message):
    settings = {"name": "pspnet_r18", "num_classes": 5, "rngs": nnx.Rngs(0)} | changes
    with pytest.raises(UserError, match=message):
        models.create(settings.pop("name"), **settings)


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 2)])
def test_max_pool_is_the_window_maximum_with_its_gradient(size):
    x = jax.random.normal(jax.random.key(0), (2, *size, 3))

    def reference(x):
        return jax.lax.reduce_window(
            x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
        )

    np.testing.assert_array_equal(jax.jit(layers.max_pool)(x), reference(x))
    weights = jax.random.normal(jax.random.key(1), reference(x).shape)
    ours = jax.jit(jax.grad(lambda x: jnp.sum(weights * layers.max_pool(x))))(x)
    theirs = jax.jit(jax.grad(lambda x: jnp.sum(weights * reference(x))))(x)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.torch
def test_pooling_resizing_and_strided_convolution_are_pytorchs():
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    x = np.random.default_rng(0).standard_normal((2, 13, 17, 4)).astype(np.float32)
    theirs = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())

    pools = pyramids.adaptive_average_pools(jnp.asarray(x), (1, 2, 3, 6))
    for n, pooled in zip((1, 2, 3, 6), pools, strict=True):
        expected = torch.nn.functional.adaptive_avg_pool2d(theirs, n)
        np.testing.assert_allclose(pooled, expected.permute(0, 2, 3, 1), atol=1e-6)

    for size in ((29, 40), (6, 5)):
        expected = torch.nn.functional.interpolate(theirs, size, mode="bilinear")
        resized = layers.resize(jnp.asarray(x), size)
        np.testing.assert_allclose(resized, expected.permute(0, 2, 3, 1), atol=1e-5)

    conv = layers.Conv(4, 6, 3, stride=2, dilation=2, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    kernel = torch.from_numpy(np.asarray(conv.kernel[...]).transpose(3, 2, 0, 1).copy())
    expected = torch.nn.functional.conv2d(theirs, kernel, stride=2, padding=2, dilation=2)
    np.testing.assert_allclose(conv(jnp.asarray(x)), expected.permute(0, 2, 3, 1), atol=1e-5)


INFO = NetworkInfo(
    name="pspnet_r18",
    num_classes=5,
    width=4,
    auxiliary=True,
    class_names=("a", "b", "c", "d", "e"),
    palette=((0, 0, 0),) * 5,
    source="a test",
)


def test_the_slice_of_a_strided_projection_stays_out_of_its_product():
    # XLA for GPUs crashes if it fuses the two.
    conv = layers.Conv(4, 6, 1, stride=2, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    graph, state = nnx.split(conv)

    def convolve(state, x):
        return nnx.merge(graph, state)(x)

    x = jax.random.normal(jax.random.key(1), (1, 6, 8, 4))
    program = jax.jit(convolve).lower(state, x).as_text()
    assert "optimization_barrier" in program.partition("stablehlo.slice")[2].partition("dot")[0]
    np.testing.assert_allclose(convolve(state, x), x[:, ::2, ::2] @ conv.kernel[0, 0], rtol=1e-6)


def test_saved_network_comes_back_with_what_describes_it(tmp_path):
    net = tiny()
    info = serialization.save(tmp_path / "net", INFO, NNXNetwork.of(net)[1])
    network, variables, found = serialization.load(tmp_path / "net")
    again = network.module(variables)
    assert found == info == dataclasses.replace(INFO, fingerprint=info.fingerprint)
    images = jax.random.normal(jax.random.key(0), (1, 32, 32, 3))
    np.testing.assert_array_equal(run(net, images), run(again, images))


def test_damaged_or_missing_network_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="no network checkpoint here"):
        serialization.load(tmp_path)
    serialization.save(tmp_path / "net", INFO, NNXNetwork.of(tiny())[1])
    description = tmp_path / "net" / "network.json"
    text = description.read_text()
    description.write_text(json.dumps(json.loads(text) | {"fingerprint": "0" * 16}))
    with pytest.raises(UserError, match="do not match the fingerprint"):
        serialization.load(tmp_path / "net")
    description.write_text(text)
    for path in (tmp_path / "net" / "parameters").rglob("*"):
        if path.is_file() and path.stat().st_size > 1000:
            path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        serialization.load(tmp_path / "net")
    description.write_text(text[:50])
    with pytest.raises(UserError, match=r"network.json: damaged"):
        serialization.load(tmp_path / "net")
    description.write_text(json.dumps(json.loads(text) | {"format": 1}))
    with pytest.raises(UserError, match="written by another version of kdjax"):
        serialization.load(tmp_path / "net")


@pytest.mark.parametrize("foreign", ["parameters/mine", "network.json"])
def test_what_something_else_wrote_is_not_replaced(tmp_path, foreign):
    file = tmp_path / "net" / foreign
    file.parent.mkdir(parents=True)
    file.write_text("[1]")
    with pytest.raises(UserError, match=r"net/(parameters|network.json) exists and is not part"):
        serialization.save(tmp_path / "net", INFO, NNXNetwork.of(tiny())[1])
    assert file.read_text() == "[1]"


def test_what_a_stopped_process_left_is_replaced(tmp_path):
    path, state = tmp_path / "net", NNXNetwork.of(tiny())[1]
    serialization.save(path, INFO, state)
    (path / "network.json").unlink()
    (path / "parameters.orbax-checkpoint-tmp").mkdir()
    serialization.save(path, INFO, state)
    assert {file.name for file in path.iterdir()} == {"network.json", "parameters"}
    serialization.load(path)


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("file", r"/file is a file"),
        ("file/net", r"/file is a file"),
        (300 * "n", "File name too long"),
    ],
)
def test_a_place_where_nothing_can_be_written_is_one_line(tmp_path, place, reason):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=rf"^cannot write {tmp_path}/{place}: .*{reason}$"):
        serialization.save(tmp_path / place, INFO, NNXNetwork.of(tiny())[1])


def test_a_network_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    path, state = tmp_path / "net", NNXNetwork.of(tiny())[1]
    info = serialization.save(path, INFO, state)

    class Full(ocp.StandardCheckpointer):
        def save(self, directory, *args, **options):
            directory.with_name(f"{directory.name}.orbax-checkpoint-tmp").mkdir()
            raise ValueError("Error writing: no space [os_error_code='28']\n and a long story")

    with monkeypatch.context() as full:
        full.setattr(serialization, "local_checkpointer", Full)
        for place in (path, tmp_path / "new"):
            with pytest.raises(
                UserError, match=rf"^cannot write {place}: No space left on device$"
            ):
                serialization.save(place, INFO, state)
    assert [file.name for file in tmp_path.iterdir()] == ["net"]
    assert {file.name for file in path.iterdir()} == {"network.json", "parameters"}
    assert serialization.load(path)[2] == info


def test_parameters_of_another_network_are_one_short_line(tmp_path):
    serialization.save(tmp_path / "net", INFO, NNXNetwork.of(tiny())[1])
    description = tmp_path / "net" / "network.json"
    other = json.loads(description.read_text()) | {"name": "segformer_b0", "width": 32}
    description.write_text(json.dumps(other))
    with pytest.raises(UserError, match="the network checkpoint is damaged: ") as error:
        serialization.load(tmp_path / "net")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < len(str(tmp_path)) + 300


def test_traced_rngs_have_the_keys_of_flax():
    def draws(rngs):
        keys = (
            rngs.params(),
            rngs.dropout(),
            rngs.params(),
            rngs["dropout"].fork()(),
            rngs.dropout(),
        )
        return [jax.random.key_data(key) for key in keys]

    expected = np.asarray(draws(nnx.Rngs(3, dropout=4)))
    np.testing.assert_array_equal(draws(traced_rngs(3, dropout=4)), expected)
    traced = jax.jit(lambda key: draws(traced_rngs(3, dropout=key)))(jax.random.key(4))
    np.testing.assert_array_equal(traced, expected)


@pytest.mark.parametrize("name", ["pspnet_mbv2", "segformer_b0"])
def test_tracing_a_network_gathers_no_errors(name, monkeypatch):
    """For each error, JAX searches all previous operations; deep networks took minutes."""
    errors = []
    monkeypatch.setattr(partial_eval.DynamicJaxprTracer, "_origin_msg", errors.append)

    def train(images):
        net = models.create(name, num_classes=3, width=4, rngs=traced_rngs(0))
        output = net(images, train=True, rngs=traced_rngs(dropout=1))
        return output.logits, nnx.state(net, nnx.BatchStat)

    _, statistics = jax.eval_shape(train, jnp.zeros((2, 32, 32, 3)))
    assert jax.tree.leaves(statistics)
    assert not errors
