"""SegFormer and Swin: parity with PyTorch, windows, declared features, training."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import thorough
from flax import nnx

from kdjax import interop, models
from kdjax.models import layers, mix_transformer, swin
from kdjax.models.adapters import traced_rngs
from kdjax.utils.errors import UserError

FLOAT32 = jnp.dtype("float32")


class SwinAlone(nnx.Module):
    """A network with this backbone alone, for the names of its weights."""

    def __init__(self, width):
        self.backbone = swin.SwinTransformer(width=width, dtype=FLOAT32, rngs=nnx.Rngs(0))

    def __call__(self, images):
        return self.backbone(images, train=False, rngs=None)


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        expected = theirs[name].numpy()
        scale = np.abs(expected).max()
        np.testing.assert_allclose(value / scale, expected / scale, atol=1e-5, err_msg=name)


def images_of(torch, height, width):
    return torch.randn(2, height, width, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.torch
def test_segformer_is_pytorchs():
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    import torch_transformers as theirs

    reference = theirs.randomise(theirs.SegFormer(4, (2, 2, 2, 2), 32, 5))
    net = models.create("segformer_b0", num_classes=5, width=8, rngs=nnx.Rngs(0))
    interop.from_mmseg(net, {name: value.numpy() for name, value in reference.state_dict().items()})
    images = images_of(torch, 65, 97)

    @nnx.jit
    def run(net, images):
        output = net(images)
        stages = {name: x for name, x in output.features.items() if name.startswith("stage")}
        return stages | {"logits": output.logits}

    with torch.no_grad():
        assert_same(run(net, jnp.asarray(images)), reference(images))


@pytest.mark.torch
def test_swin_is_pytorchs():
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    import torch_transformers as theirs

    reference = theirs.randomise(theirs.Swin(4))
    net = SwinAlone(width=8)
    weights = {f"backbone.{name}": x.numpy() for name, x in reference.state_dict().items()}
    interop.from_mmseg(net, weights)
    images = images_of(torch, 65, 97)
    with torch.no_grad():
        expected = reference(images)
    assert_same(nnx.jit(lambda net, x: net(x))(net, jnp.asarray(images)), expected)


def test_swin_goes_to_mmsegmentation_with_its_constants_and_back():
    net = SwinAlone(width=2)
    weights = interop.to_mmseg(net)
    index = weights["backbone.stages.3.blocks.1.attn.w_msa.relative_position_index"]
    assert (index.dtype, index.shape) == (np.int64, (49, 49))
    other = nnx.eval_shape(lambda: SwinAlone(width=2))
    interop.from_mmseg(other, weights)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(net), nnx.state(other))


def test_epsilons_of_the_layer_norms():
    def epsilons(net):
        return {m.epsilon for _, m in nnx.iter_modules(net) if isinstance(m, nnx.LayerNorm)}

    net = nnx.eval_shape(
        lambda: models.create("segformer_b0", num_classes=5, width=2, rngs=traced_rngs(0))
    )
    assert epsilons(net) == {1e-6}
    assert epsilons(nnx.eval_shape(lambda: SwinAlone(width=2))) == {1e-5}


def test_layer_norm_survives_a_large_mean():
    # The mean square less the squared mean has no correct digit here.
    x = 1e4 + jnp.array([[-1.0, 1.0, -1.0, 1.0]])
    norm = layers.LayerNorm(4, epsilon=1e-6, dtype=FLOAT32, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(norm(x), [[-1, 1, -1, 1]], rtol=1e-5)


def test_relative_positions():
    index = swin.relative_position_index()
    places = list(itertools.product(range(7), repeat=2))
    for (i, (row, column)), (j, (other_row, other_column)) in itertools.product(
        enumerate(places), repeat=2
    ):
        assert index[i, j] == (row - other_row + 6) * 13 + column - other_column + 6


def test_windows_come_back_in_place():
    x = jnp.arange(2 * 14 * 21 * 3).reshape(2, 14, 21, 3)
    windows = swin.to_windows(x)
    np.testing.assert_array_equal(windows[1, 4].reshape(7, 7, 3), x[1, 7:, 7:14])
    np.testing.assert_array_equal(swin.from_windows(windows, 14, 21), x)


def parameters(net):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(net, nnx.Param)))


def traced(name):
    """Returns an abstract network of published size, and its output."""
    nets = []

    def run(images):
        nets.append(models.create(name, num_classes=150, rngs=traced_rngs(0)))
        return nets[0](images)

    output = jax.eval_shape(run, jnp.ones((1, 65, 97, 3)))
    return nets[0], output


def check_specs(specs, found):
    assert found.keys() == specs.keys()
    for key, spec in specs.items():
        size = (-(-65 // spec.stride), -(-97 // spec.stride))
        assert found[key].shape == (1, *size, spec.channels), key


@pytest.mark.parametrize(
    ("name", "count"),
    thorough.after(
        2,
        [
            ("segformer_b0", 3_753_718),
            ("segformer_linear_b0", 3_752_694),
            ("segformer_b1", 13_716_822),
            ("segformer_b2", 24_761_686),
            ("segformer_b3", 44_637_526),
            ("segformer_b4", 61_408_086),
            ("segformer_b5", 82_008_406),
            ("segformer_linear_b2", 27_461_974),
        ],
    ),
)
def test_segformer_has_the_published_parameters_and_declared_features(name, count):
    net, output = traced(name)
    assert parameters(net) == count
    assert output.aux_logits is None
    check_specs(net.feature_specs, {"logits": output.logits, **output.features})


def test_swin_has_mmsegmentations_parameters_and_declared_features():
    net, output = traced("upernet_swin_t")
    assert parameters(net) == 59_941_862
    found = {"logits": output.logits, "aux_logits": output.aux_logits, **output.features}
    check_specs(net.feature_specs, found)


def test_drop_path_drops_whole_images_and_keeps_the_mean():
    drop = layers.DropPath(0.25)
    x = drop(jnp.ones((4000, 1, 2, 3)), deterministic=False, rngs=nnx.Rngs(0))
    assert bool(jnp.all(x == x[:, :1, :1, :1]))
    np.testing.assert_allclose(jnp.unique(x), [0, 1 / 0.75], rtol=1e-6)
    np.testing.assert_allclose(jnp.mean(x), 1, atol=0.05)


def test_drop_path_rates_rise_over_all_blocks():
    np.testing.assert_allclose(
        np.concatenate(layers.drop_path_rates(0.3, (1, 2, 1))), [0, 0.1, 0.2, 0.3]
    )
    net = nnx.eval_shape(
        lambda: models.create("segformer_b0", num_classes=5, width=2, rngs=traced_rngs(0))
    )
    last = net.backbone.stages[3].blocks[1]
    assert (net.backbone.stages[0].blocks[0].drop_path.rate, last.drop_path.rate) == (0, 0.1)
    assert nnx.eval_shape(lambda: SwinAlone(width=2)).backbone.stages[3][1].drop_path.rate == 0.3


@pytest.mark.thorough
@pytest.mark.parametrize("backbone", ["segformer", "swin"])
def test_training_has_gradients_everywhere_and_drops_paths(backbone, monkeypatch):
    monkeypatch.setitem(mix_transformer.SIZES, "b0", (2, (1, 1, 1, 1)))
    monkeypatch.setattr(swin, "DEPTHS", (1, 2, 1, 1))
    create = {
        "segformer": partial(mix_transformer.MixTransformer, "b0"),
        "swin": swin.SwinTransformer,
    }[backbone]
    graphdef, params = nnx.split(create(width=4, dtype=FLOAT32, rngs=nnx.Rngs(0)))
    images = jax.random.normal(jax.random.key(0), (8, 33, 40, 3))

    @jax.jit
    @jax.value_and_grad
    def gradient(params, key):
        net = nnx.merge(graphdef, params)
        features = net(images, train=True, rngs=nnx.Rngs(dropout=key))
        return sum(jnp.mean(jnp.sin(3 * x)) for x in features.values())

    loss, gradients = gradient(params, jax.random.key(0))
    for path, leaf in nnx.to_flat_state(gradients):
        values = np.asarray(leaf[...])
        assert np.all(np.isfinite(values)), path
        assert np.any(values != 0), path
    assert loss != gradient(params, jax.random.key(1))[0]


def test_bfloat16_computes_in_bfloat16_with_float32_parameters():
    options = {"width": 2, "dtype": jnp.dtype("bfloat16")}
    images = jnp.ones((1, 33, 40, 3), "bfloat16")
    for create in (partial(mix_transformer.MixTransformer, "b0"), swin.SwinTransformer):
        net = nnx.eval_shape(lambda create=create: create(**options, rngs=traced_rngs(0)))
        features = nnx.eval_shape(lambda net, x: net(x, train=False, rngs=None), net, images)
        assert {x.dtype for x in features.values()} == {jnp.dtype("bfloat16")}
        assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(net))} == {FLOAT32}


def test_too_small_images_are_refused():
    net = nnx.eval_shape(
        lambda: models.create("segformer_b0", num_classes=5, width=2, rngs=traced_rngs(0))
    )
    with pytest.raises(UserError, match=r"28x64; SegFormer needs sides of at least 29"):
        nnx.eval_shape(lambda net, x: net(x), net, jnp.ones((1, 28, 64, 3)))
    nnx.eval_shape(lambda net, x: net(x), net, jnp.ones((1, 29, 64, 3)))


def huggingface_weights(head_channels, channels, num_classes):
    """Returns random weights with the names of transformers 4.57, one block in each stage."""
    rng = np.random.default_rng(0)
    weights = {}

    def add(name, *shape):
        weights[f"{name}.weight"] = rng.standard_normal(shape, np.float32)
        weights[f"{name}.bias"] = rng.standard_normal(shape[:1], np.float32)

    before = 3
    for i, (heads, reduction) in enumerate([(1, 8), (2, 4), (5, 2), (8, 1)]):
        width, size = heads * head_channels, 3 if i else 7
        encoder, block = "segformer.encoder", f"segformer.encoder.block.{i}.0"
        add(f"{encoder}.patch_embeddings.{i}.proj", width, before, size, size)
        add(f"{encoder}.patch_embeddings.{i}.layer_norm", width)
        add(f"{block}.layer_norm_1", width)
        for part in ("query", "key", "value"):
            add(f"{block}.attention.self.{part}", width, width)
        if reduction > 1:
            add(f"{block}.attention.self.sr", width, width, reduction, reduction)
            add(f"{block}.attention.self.layer_norm", width)
        add(f"{block}.attention.output.dense", width, width)
        add(f"{block}.layer_norm_2", width)
        add(f"{block}.mlp.dense1", 4 * width, width)
        add(f"{block}.mlp.dwconv.dwconv", 4 * width, 1, 3, 3)
        add(f"{block}.mlp.dense2", width, 4 * width)
        add(f"{encoder}.layer_norm.{i}", width)
        add(f"decode_head.linear_c.{i}.proj", channels, width)
        before = width
    add("decode_head.linear_fuse", channels, 4 * channels, 1, 1)
    del weights["decode_head.linear_fuse.bias"]
    add("decode_head.batch_norm", channels)
    weights["decode_head.batch_norm.running_mean"] = rng.standard_normal(channels, np.float32)
    weights["decode_head.batch_norm.running_var"] = 1 + rng.random(channels, np.float32)
    weights["decode_head.batch_norm.num_batches_tracked"] = np.array(3)
    add("decode_head.classifier", num_classes, channels, 1, 1)
    return weights


def test_huggingface_weights_find_their_place(monkeypatch):
    monkeypatch.setitem(mix_transformer.SIZES, "b0", (2, (1, 1, 1, 1)))
    weights = huggingface_weights(2, 16, 5)
    net = nnx.eval_shape(
        lambda: models.create("segformer_linear_b0", num_classes=5, width=4, rngs=traced_rngs(0))
    )
    interop.load_weights(net, weights)

    block = "segformer.encoder.block.2.0"
    queries, keys, values = np.split(
        np.asarray(net.backbone.stages[2].blocks[0].attention.in_projection.kernel[...]), 3, axis=1
    )
    for name, kernel in {"query": queries, "key": keys, "value": values}.items():
        np.testing.assert_array_equal(kernel.T, weights[f"{block}.attention.self.{name}.weight"])

    # The head in NumPy: linear maps, concatenated from the last stage to the first.
    rng = np.random.default_rng(1)
    stages = [rng.standard_normal((1, 2, 3, channels), np.float32) for channels in (2, 4, 10, 16)]

    def part(name):
        return weights[f"decode_head.{name}"]

    maps = [
        x @ part(f"linear_c.{i}.proj.weight").T + part(f"linear_c.{i}.proj.bias")
        for i, x in enumerate(stages)
    ]
    x = np.concatenate(maps[::-1], -1) @ part("linear_fuse.weight")[:, :, 0, 0].T
    x = (x - part("batch_norm.running_mean")) / np.sqrt(part("batch_norm.running_var") + 1e-5)
    x = np.maximum(x * part("batch_norm.weight") + part("batch_norm.bias"), 0)
    expected = x @ part("classifier.weight")[:, :, 0, 0].T + part("classifier.bias")
    features = {f"stage{i + 1}": jnp.asarray(x) for i, x in enumerate(stages)}
    scores, _ = net.head(features, train=False, rngs=None)
    np.testing.assert_allclose(scores.logits, expected, rtol=1e-4, atol=1e-3)


def test_wrong_huggingface_weights_are_one_clear_line():
    weights = huggingface_weights(2, 16, 5)
    net = nnx.eval_shape(
        lambda: models.create("segformer_linear_b0", num_classes=5, width=4, rngs=traced_rngs(0))
    )
    message = r'"vit.layer.weight", which is no part of the networks of HuggingFace'
    with pytest.raises(UserError, match=message):
        interop.load_weights(net, weights | {"vit.layer.weight": np.zeros(1)})
    key = "segformer.encoder.block.0.0.attention.self.key.bias"
    del weights[key]
    with pytest.raises(UserError, match=f"lack {key}"):
        interop.load_weights(net, weights)
