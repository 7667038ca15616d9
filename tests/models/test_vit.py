"""DINOv2 and DINOv3: parity with HuggingFace, names of weights, interpolation, heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import thorough
from flax import nnx

from kdjax import interop, models
from kdjax.models import vit
from kdjax.models.adapters import traced_rngs
from kdjax.utils.errors import UserError

# Twice the width is the hidden size.
WIDTH, HIDDEN = 16, 32
SMALL = {"heads": 2, "depth": 4}


@pytest.fixture
def small(monkeypatch):
    """Makes all variants small, with position embeddings for images of 70 pixels."""
    for name, variant in list(vit.VARIANTS.items()):
        grid = min(variant.grid, 5)
        monkeypatch.setitem(vit.VARIANTS, name, variant._replace(**SMALL, grid=grid))


def huggingface(kind, **config):
    """Returns a backbone of transformers with random weights and all of its stages."""
    transformers = pytest.importorskip("transformers", reason="compares with transformers")
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    config = getattr(transformers, f"{kind}Config")(**config)
    config.out_features = [f"stage{number}" for number in range(1, config.num_hidden_layers + 1)]
    net = getattr(transformers, f"{kind}Backbone")(config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        scale = 0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
        parameter.data = scale * torch.randn(parameter.shape, generator=generator)
    return net


def weights_of(net):
    return {name: value.detach().numpy() for name, value in net.state_dict().items()}


def check_parity(name, theirs, size, width):
    import torch

    net = models.create(name, num_classes=0, width=width, rngs=nnx.Rngs(0))
    interop.load_weights(net, weights_of(theirs))
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(images).feature_maps
    maps = nnx.jit(lambda net, images: net(images))(net, images.permute(0, 2, 3, 1).numpy())
    depth = len(expected)
    assert list(maps) == ["stage1", "stage2", "stage3", "stage4"]
    for quarter, (stage, found) in enumerate(maps.items(), 1):
        right = expected[depth * quarter // 4 - 1].permute(0, 2, 3, 1).numpy()
        scale = np.abs(right).max()
        np.testing.assert_allclose(found / scale, right / scale, atol=1e-4, err_msg=stage)


COMMON = {"hidden_size": HIDDEN, "num_hidden_layers": 4, "num_attention_heads": 2}
V2 = {**COMMON, "image_size": 70, "patch_size": 14}
V3 = {**COMMON, "intermediate_size": 4 * HIDDEN, "num_register_tokens": 4}
GATED = {"use_gated_mlp": True, "hidden_act": "silu"}


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "kind", "config", "size"),
    [
        # Position embeddings grow in one direction and shrink in the other.
        ("dinov2_s", "Dinov2", V2, (42, 126)),
        ("dinov2_s_reg", "Dinov2WithRegisters", V2, (42, 126)),
        ("dinov3_s", "DINOv3ViT", V3, (48, 80)),
        ("dinov3_splus", "DINOv3ViT", {**V3, **GATED}, (80, 48)),
        ("dinov2_g", "Dinov2", {**V2, "use_swiglu_ffn": True}, (70, 70)),
    ],
)
def test_features_are_huggingfaces(small, monkeypatch, name, kind, config, size):
    if name == "dinov2_g":
        # HuggingFace rounds the published 8 / 3 up to a multiple of 8 channels.
        rounded = vit.VARIANTS[name]._replace(expansion=88 / HIDDEN)
        monkeypatch.setitem(vit.VARIANTS, name, rounded)
    check_parity(name, huggingface(kind, **config), size, WIDTH)


@pytest.mark.torch
@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "kind", "config", "size"),
    [
        ("dinov2_s", "Dinov2", {"image_size": 518}, (140, 252)),
        ("dinov3_s", "DINOv3ViT", {"num_register_tokens": 4}, (144, 256)),
    ],
)
def test_features_of_published_size_are_huggingfaces(name, kind, config, size):
    config = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, **config}
    check_parity(name, huggingface(kind, **config), size, 64)


@pytest.mark.torch
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("sizes", [(37, 12), (5, 5), (5, 13), (37, 36)])
def test_bicubic_interpolation_is_pytorchs(antialias, sizes):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    size, new = sizes
    # PyTorch 2.13 interpolates a map of one column wrongly.
    eye = torch.eye(size, dtype=torch.float64)[None, :, :, None].repeat(1, 1, 1, 2)
    expected = torch.nn.functional.interpolate(
        eye, size=(new, 2), mode="bicubic", antialias=antialias
    )
    matrix = vit.bicubic_matrix(size, new, antialias=antialias)
    np.testing.assert_allclose(matrix, expected[0, :, :, 0].T, atol=1e-6)


def authors_weights(net, *, registers="register_tokens"):
    """Returns the weights of a small network under its authors' names."""
    weights = {
        name.removeprefix("backbone."): array
        for name, array in interop.to_mmseg(net).items()
        if name.startswith("backbone.")
    }
    if "register_tokens" in weights:
        weights[registers] = weights.pop("register_tokens")
    channels = weights["norm.weight"].size
    return {"mask_token": np.zeros((1, channels), np.float32), **weights}


def randomized(name):
    net = models.create(name, num_classes=0, width=WIDTH, rngs=nnx.Rngs(0))
    generator = np.random.default_rng(0)

    def draw(leaf):
        return jnp.asarray(generator.standard_normal(leaf.shape, np.float32))

    nnx.update(net, jax.tree.map(draw, nnx.state(net)))
    return net


@pytest.mark.parametrize("name", ["dinov2_s", "dinov2_s_reg", "dinov2_g"])
def test_names_of_dinov2s_authors(small, name):
    net = randomized(name)
    weights = authors_weights(net)
    if vit.VARIANTS[name].gated:
        renamed = {"mlp.fc1": "mlp.w12", "mlp.fc2": "mlp.w3"}
        for old, new in renamed.items():
            weights = {key.replace(old, new): value for key, value in weights.items()}
    assert "blocks.3.attn.qkv.weight" in weights
    assert "blocks.0.ls1.gamma" in weights
    other = models.create(name, num_classes=0, width=WIDTH, rngs=nnx.Rngs(1))
    interop.load_weights(other, weights)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(net), nnx.state(other))
    assert interop.origin(weights) == "DINOv2 and DINOv3"
    assert interop.preprocessing(interop.origin(weights)) == models.outputs.IMAGENET


@pytest.mark.parametrize("name", ["dinov3_s", "dinov3_splus"])
def test_names_of_dinov3s_authors(small, name):
    net = randomized(name)
    weights = authors_weights(net, registers="storage_tokens")
    third = vit.VARIANTS[name].heads * WIDTH
    for number in range(4):
        block = f"blocks.{number}"
        if f"{block}.mlp.fc1.weight" in weights and vit.VARIANTS[name].gated:
            for kind in ("weight", "bias"):
                first, second = np.split(weights.pop(f"{block}.mlp.fc1.{kind}"), 2)
                weights[f"{block}.mlp.w1.{kind}"] = first
                weights[f"{block}.mlp.w2.{kind}"] = second
                weights[f"{block}.mlp.w3.{kind}"] = weights.pop(f"{block}.mlp.fc2.{kind}")
        # The keys have no bias: the number in the file does not count.
        mask = np.ones(3 * third, np.float32)
        mask[third : 2 * third] = 0
        weights[f"{block}.attn.qkv.bias_mask"] = mask
        bias = net.backbone.blocks[number].attention.in_projection.bias
        bias[...] = bias[...] * mask
    weights["rope_embed.periods"] = np.ones(4, np.float32)
    other = models.create(name, num_classes=0, width=WIDTH, rngs=nnx.Rngs(1))
    interop.load_weights(other, weights)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(net), nnx.state(other))


def test_saved_folders_of_transformers_are_read(small, tmp_path):
    """`save_pretrained` writes other names than `state_dict` has."""
    theirs = huggingface("Dinov2", **V2)
    theirs.save_pretrained(tmp_path)
    found = []
    named = weights_of(theirs)
    classifier = {f"dinov2.{name}": array for name, array in named.items()}
    classifier["classifier.weight"] = np.zeros((10, 2 * HIDDEN), np.float32)
    for weights in (named, interop.read_weights(tmp_path).weights, classifier):
        net = models.create("dinov2_s", num_classes=0, width=WIDTH, rngs=nnx.Rngs(len(found)))
        interop.load_weights(net, weights)
        found.append(nnx.state(net))
    for other in found[1:]:
        jax.tree.map(np.testing.assert_array_equal, found[0], other)


@pytest.mark.parametrize("name", ["dinov2_s", "dinov3_s"])
def test_maps_cover_images_of_any_size(small, name):
    net = models.create(name, num_classes=0, width=WIDTH, rngs=nnx.Rngs(0))
    patch = vit.VARIANTS[name].patch
    maps = jax.eval_shape(lambda images: net(images), jnp.zeros((2, 45, 3 * patch, 3)))
    for stage, found in maps.items():
        assert found.shape == (2, -(-45 // patch), 3, HIDDEN)
        assert net.feature_specs[stage] == (HIDDEN, patch)


@pytest.mark.parametrize(
    "name",
    thorough.after(
        2, ["linear_dinov2_s", "fpn_light_dinov3_s", "fpn_light_dinov2_s", "linear_dinov3_s"]
    ),
)
def test_heads_train_on_a_vision_transformer(small, name):
    net = models.create(name, num_classes=5, width=WIDTH, rngs=nnx.Rngs(0))
    images = np.random.default_rng(0).standard_normal((2, 56, 84, 3), np.float32)

    @nnx.jit
    def gradients(net, images):
        def loss(net):
            output = net(images, train=True, rngs=nnx.Rngs(1))
            return jnp.mean(jnp.square(output.logits - 1))

        return nnx.grad(loss)(net)

    found = gradients(net, images)
    patch = net.feature_specs["stage4"].stride
    assert net(images).logits.shape == (2, -(-56 // patch), -(-84 // patch), 5)
    for path, leaf in nnx.to_flat_state(nnx.state(found)):
        # The auxiliary head is not part of this loss.
        if "auxiliary_head" not in path:
            assert np.abs(leaf[...]).max() > 0, path


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # Without the mask token, which HuggingFace counts.
        ("dinov2_s", 22_056_192),
        ("dinov2_b", 86_579_712),
        ("dinov2_l", 304_367_616),
        ("dinov2_g", 1_136_479_232),
        ("dinov2_s_reg", 22_057_728),
    ],
)
def test_published_sizes(name, count):
    net = nnx.eval_shape(lambda: models.create(name, num_classes=0, rngs=traced_rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(net, nnx.Param))) == count


def test_mistakes_are_one_line(small):
    with pytest.raises(UserError, match="the width is 6; that of dinov3_s must be a multiple of 4"):
        models.create("dinov3_s", num_classes=0, width=6, rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="num_classes is 0; a network needs at least one class"):
        models.create("linear_dinov2_s", num_classes=0, width=WIDTH, rngs=nnx.Rngs(0))
    net = models.create("r18", num_classes=0, width=2, rngs=nnx.Rngs(0))
    whole = {"decode_head.conv_seg.weight": np.zeros((2, 2, 1, 1), np.float32)}
    with pytest.raises(UserError, match="are those of a network with a head, not of a backbone"):
        interop.load_weights(net, whole)
