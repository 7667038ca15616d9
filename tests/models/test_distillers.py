"""The networks of CIRKD and TorchDistiller: maps compared with PyTorch, weights, refusals."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from made_up_weights import segformer_weights

from kdjax import interop, models
from kdjax.models import mix_transformer
from kdjax.models.adapters import traced_rngs
from kdjax.models.outputs import IMAGENET, MEAN_ONLY
from kdjax.utils.errors import UserError

CLASSES, WIDTH = 5, 4


def abstract(name, **settings):
    settings = {"num_classes": CLASSES, "width": WIDTH, **settings}
    return nnx.eval_shape(lambda: models.create(name, rngs=traced_rngs(0), **settings))


def references():
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    import torch_distillers as theirs

    torch.manual_seed(0)
    psp, deeplab = theirs.CirkdPSPHead, theirs.CirkdDeepLabHead
    return torch, {
        "pspnet_r18@cirkd": lambda: theirs.CirkdResNet(psp, WIDTH, CLASSES),
        "deeplabv3_r18@cirkd": lambda: theirs.CirkdResNet(deeplab, WIDTH, CLASSES),
        "deeplabv3_r18@cirkdv2": lambda: theirs.CirkdResNet(deeplab, WIDTH, CLASSES, 8),
        "pspnet_mbv2@cirkd": lambda: theirs.CirkdMobileNet(psp, 16, CLASSES),
        "pspnet_r18@torchdistiller": lambda: theirs.TorchDistillerPSPNet(WIDTH, CLASSES),
    }


def weights_of(net):
    return {f"module.{name}": value.numpy() for name, value in net.state_dict().items()}


@partial(nnx.jit, static_argnames="train")
def scores(net, images, train):
    output = net(images, train=train)
    return {"logits": output.logits, "aux_logits": output.aux_logits}


@pytest.mark.torch
@pytest.mark.parametrize(
    "name",
    [
        *("pspnet_r18@cirkd", "deeplabv3_r18@cirkd", "deeplabv3_r18@cirkdv2"),
        *("pspnet_mbv2@cirkd", "pspnet_r18@torchdistiller"),
    ],
)
def test_maps_are_pytorchs(name):
    torch, built = references()
    theirs = built[name]()
    # With an even size, ceil mode makes a difference.
    images = torch.randn(1, 3, 64, 98)
    with torch.no_grad():
        expected = theirs(images)
    net = abstract(name, width=16 if "mbv2" in name else WIDTH, auxiliary="mbv2" not in name)
    interop.load_weights(net, weights_of(theirs))
    # Their network reads blue first, ours reads red first.
    found = scores(net, images.flip(1).permute(0, 2, 3, 1).numpy(), train=False)
    for key, value in expected.items():
        scale = float(value.abs().max())
        np.testing.assert_allclose(
            found[key] / scale, value.permute(0, 2, 3, 1) / scale, atol=2e-5, err_msg=key
        )


@pytest.mark.torch
def test_training_is_pytorchs_too():
    torch, built = references()
    theirs = built["pspnet_r18@torchdistiller"]()
    net = abstract("pspnet_r18@torchdistiller")
    interop.load_weights(net, weights_of(theirs))
    for _, module in nnx.iter_modules(net):
        if isinstance(module, nnx.Dropout):
            module.rate = 0.0
    images = torch.randn(4, 3, 64, 66)
    expected = theirs.train()(images)
    found = scores(net, images.flip(1).permute(0, 2, 3, 1).numpy(), train=True)
    for key in ("logits", "aux_logits"):
        value = expected[key].detach()
        scale = float(value.abs().max())
        np.testing.assert_allclose(
            found[key] / scale, value.permute(0, 2, 3, 1) / scale, atol=1e-4, err_msg=key
        )


def test_heads_have_their_channels():
    def head(name):
        return abstract(name, width=64, num_classes=19).feature_specs["head"].channels

    channels = {
        "pspnet_r18@cirkd": 128,
        "pspnet_r101@cirkd": 512,
        "pspnet_r101b@cirkdv2": 256,
        "deeplabv3_mbv2@cirkd": 128,
        "deeplabv3_r18@cirkdv2": 512,
        "segformer_b0@cirkd": 256,
        "pspnet_r18@torchdistiller": 128,
    }
    assert {name: head(name) for name in channels} == channels
    assert "pspnet_r18@cirkdv2" not in models.NETWORKS


def authors_names(weights):
    """Renames weights like the authors' mmsegmentation, and adds its unused classifier."""
    heads = {"linear_fuse.0": "linear_fuse.conv", "linear_fuse.1": "linear_fuse.bn"}
    named = {"decode_head.conv_seg.weight": np.zeros((CLASSES, 128, 1, 1))}
    for name, value in weights.items():
        for theirs, ours in heads.items():
            name = name.replace(theirs, ours)
        part = "decode_head" if name.startswith("linear_") else "backbone"
        named[f"{part}.{name}"] = value
    return named


def test_segformer_of_its_authors(monkeypatch):
    monkeypatch.setitem(mix_transformer.SIZES, "b0", (2, (1, 1, 1, 1)))
    weights = segformer_weights((2, 4, 10, 16), 16)
    del weights["linear_fuse.0.bias"]
    cirkd, net = abstract("segformer_b0@cirkd"), abstract("segformer_b0@nvlabs")
    interop.load_weights(cirkd, weights)
    named = authors_names(weights)
    assert interop.origin(named) == "SegFormer's authors"
    assert interop.preprocessing(interop.origin(named)) == IMAGENET
    assert not interop.has_auxiliary_head(named)
    interop.load_weights(net, named)
    found, expected = interop.to_mmseg(net), interop.to_mmseg(cirkd)
    # CIRKD trained on images with blue first.
    first = "backbone.layers.0.0.projection.weight"
    expected[first] = expected[first][:, ::-1]
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    dropouts = [m for _, m in nnx.iter_modules(net.head) if isinstance(m, nnx.Dropout)]
    assert [dropout.rate for dropout in dropouts] == [0.1]
    norm = net.backbone.stages[0].embedding.norm
    assert (norm.epsilon, net.backbone.stages[0].blocks[0].norm1.epsilon) == (1e-5, 1e-6)


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_a_mix_transformer_of_its_authors_becomes_the_backbone(monkeypatch, prefix):
    monkeypatch.setitem(mix_transformer.SIZES, "b0", (2, (1, 1, 1, 1)))
    weights = segformer_weights((2, 4, 10, 16), 16)
    del weights["linear_fuse.0.bias"]
    whole = abstract("segformer_b0@nvlabs")
    interop.load_weights(whole, authors_names(weights))
    given = {f"{prefix}{k}": v for k, v in weights.items() if not k.startswith("linear_")}
    given |= {} if prefix else {"head.weight": np.zeros((9, 16)), "head.bias": np.zeros(9)}
    assert interop.origin(given) == "an image classifier"
    net = models.create("segformer_b0", num_classes=CLASSES, width=WIDTH, rngs=nnx.Rngs(0))
    before = interop.to_mmseg(net)
    interop.load_weights(net, given)
    found, expected = interop.to_mmseg(net), interop.to_mmseg(whole)
    for name, value in found.items():
        wanted = expected if name.startswith("backbone.") else before
        np.testing.assert_array_equal(value, wanted[name], err_msg=name)


def test_segformer_finds_its_place(monkeypatch):
    monkeypatch.setitem(mix_transformer.SIZES, "b0", (2, (1, 1, 1, 1)))
    weights = segformer_weights((2, 4, 10, 16), 16)
    net = abstract("segformer_b0@cirkd")
    interop.load_weights(net, weights)

    attention = net.backbone.stages[2].blocks[0].attention
    queries, keys_values = np.split(np.asarray(attention.in_projection.kernel[...]), [10], axis=1)
    np.testing.assert_array_equal(queries.T, weights["block3.0.attn.q.weight"])
    np.testing.assert_array_equal(keys_values.T, weights["block3.0.attn.kv.weight"])
    block = net.backbone.stages[0].blocks[0]
    norms = (block.norm1, block.attention.reduction.norm, net.backbone.stages[0].embedding.norm)
    assert [norm.epsilon for norm in norms] == [1e-6, 1e-5, 1e-5]

    # The head in NumPy: linear maps, concatenated from the last stage to the first.
    rng = np.random.default_rng(1)
    stages = [rng.standard_normal((1, 2, 3, c), np.float32) for c in (2, 4, 10, 16)]
    maps = [
        x @ weights[f"linear_c{i}.proj.weight"].T + weights[f"linear_c{i}.proj.bias"]
        for i, x in enumerate(stages, 1)
    ]
    x = np.concatenate(maps[::-1], -1) @ weights["linear_fuse.0.weight"][:, :, 0, 0].T
    x = x + weights["linear_fuse.0.bias"] - weights["linear_fuse.1.running_mean"]
    x = x / np.sqrt(weights["linear_fuse.1.running_var"] + 1e-5)
    x = np.maximum(x * weights["linear_fuse.1.weight"] + weights["linear_fuse.1.bias"], 0)
    expected = x @ weights["linear_pred.weight"][:, :, 0, 0].T + weights["linear_pred.bias"]
    features = {f"stage{i}": jnp.asarray(x) for i, x in enumerate(stages, 1)}
    scores, _ = net.head(features, train=False, rngs=None)
    np.testing.assert_allclose(scores.logits, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        # CIRKD's UPerNet and MobileNetV3.
        (["pretrained.conv1.weight", "head.ppm_conv.0.0.weight"], '"head.ppm_conv.0.0.weight"'),
        (["head.classifier.weight", "pretrained.blocks.0.a.weight"], '"pretrained.blocks.0.a'),
        (["pspmodule.stages.0.1.weight", "head.weight", "esp.weight"], '"esp.weight"'),
    ],
)
def test_other_networks_are_refused_in_one_line(names, message):
    with pytest.raises(UserError, match=f"hold {message}.*which is no part of") as error:
        interop.load_weights(abstract("pspnet_r18@cirkd"), {name: np.zeros(2) for name in names})
    assert "\n" not in str(error.value)


def test_images_are_those_of_the_project():
    names = ["pretrained.conv1.weight", "head.classifier.weight"]
    assert interop.preprocessing(interop.origin(names)) == MEAN_ONLY
    names = ["module.pspmodule.stages.0.1.weight", "module.head.weight", "module.layer1.a"]
    assert interop.preprocessing(interop.origin(names)) == MEAN_ONLY
    assert interop.preprocessing(interop.origin(["decode_head.a"])) != MEAN_ONLY
