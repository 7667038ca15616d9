"""Networks by name: their features, and their maps compared with PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import thorough
from flax import nnx

from kdjax import interop, models
from kdjax.models import FeatureSpec, hrnet
from kdjax.models.adapters import traced_rngs
from kdjax.models.efficientnet_lite import EfficientNetLite

FLOAT32 = jnp.dtype("float32")
IMAGE = (65, 97)
# Every head and every kind of backbone at least once. The first five always run.
NAMES = [
    *("pspnet_r18", "deeplabv3_r18", "deeplabv3plus_r18", "upernet_r18", "pspnet_mbv2"),
    *("pspnet_efficientnet_lite0", "lraspp_r18", "fpn_light_r18"),
    *("pspnet_r34", "fcn_r50b", "upernet_mbv2", "fcn_hr18s", "deeplabv3plus_light_mbv2"),
    # No project has these combinations, but any backbone works with any head.
    *("pspnet_swin_t", "upernet_mit_b0", "deeplabv3plus_swin_t", "upernet_hr18s"),
]
COMPARED = [
    *("pspnet_r18", "fcn_r50", "deeplabv3_r18b", "deeplabv3plus_mbv2", "upernet_r18"),
    "fpn_light_r18",
]


def abstract(name, **settings):
    settings = {"num_classes": 5, "width": 4, **settings}
    return nnx.eval_shape(lambda: models.create(name, rngs=traced_rngs(0), **settings))


def maps(output):
    found = {"logits": output.logits, "aux_logits": output.aux_logits, **output.features}
    return {name: value for name, value in found.items() if value is not None}


@pytest.mark.parametrize("name", thorough.after(5, NAMES))
def test_every_declared_feature_is_there_with_its_channels_and_stride(name):
    nets = []

    def run(images):
        nets.append(models.create(name, num_classes=5, width=4, rngs=traced_rngs(0)))
        return maps(nets[0](images))

    found = jax.eval_shape(run, jnp.ones((1, *IMAGE, 3)))
    (net,) = nets
    assert found.keys() == net.feature_specs.keys()
    for key, spec in net.feature_specs.items():
        size = tuple(-(-length // spec.stride) for length in IMAGE)
        assert found[key].shape == (1, *size, spec.channels), key


# Measured on mmsegmentation 1.2.2 by benchmarks/parity.py, with 19 classes.
COUNTS = {
    "pspnet_r18": 12_790_086,
    "pspnet_r101": 67_967_622,
    "deeplabv3plus_mbv2": 15_244_374,
    "upernet_r18": 41_402_502,
    "fcn_hr18s": 3_939_309,
}


def count(net):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(net, nnx.Param)))


@pytest.mark.parametrize("name", thorough.after(1, [*COUNTS]))
def test_parameter_counts_are_mmsegmentations(name):
    assert count(abstract(name, num_classes=19, width=64)) == COUNTS[name]


# Measured on efficientnet-lite-pytorch 0.1.0, without its last convolution and its classifier.
LITE_COUNTS = {
    "lite0": 2_958_848,
    "lite1": 3_723_520,
    "lite2": 4_357_952,
    "lite3": 6_422_016,
    "lite4": 11_149_568,
}


@pytest.mark.parametrize("size", thorough.after(1, [*LITE_COUNTS]))
def test_parameter_counts_are_efficientnet_lites(size):
    net = nnx.eval_shape(lambda: EfficientNetLite(size, dtype=FLOAT32, rngs=traced_rngs(0)))
    assert count(net) == LITE_COUNTS[size]


def test_blocks_of_efficientnet_lite_are_dropped_as_often_as_tensorflow_drops_them():
    net = nnx.eval_shape(lambda: EfficientNetLite("lite0", dtype=FLOAT32, rngs=traced_rngs(0)))
    rates = [block.drop_path.rate for blocks in net.blocks for block in blocks]
    np.testing.assert_allclose(rates, 0.2 * np.arange(16) / 16)

    def train(net, images):
        return net(images, train=True, rngs=traced_rngs(dropout=1))

    assert "random_bits" in str(jax.make_jaxpr(train)(net, jnp.ones((2, 32, 32, 3))))


@pytest.mark.thorough
@pytest.mark.usefixtures("shallow")
def test_a_dilated_efficientnet_lite_keeps_what_its_weights_mean():
    """The positions match at the last of every 2 or 4, because even sides are padded at the end."""

    @jax.jit
    def run(images):
        found = []
        for stride in (32, 16, 8):
            net = EfficientNetLite(
                "lite0", width=8, output_stride=stride, dtype=FLOAT32, rngs=traced_rngs(0)
            )
            assert net.feature_specs["stage4"] == FeatureSpec(40, stride)
            found.append(net(images, train=False, rngs=None))
        return found

    whole, *larger = run(jax.random.normal(jax.random.key(0), (1, 64, 96, 3)))
    for maps in larger:
        for name, wanted in whole.items():
            step = maps[name].shape[1] // wanted.shape[1]
            found = maps[name][:, step - 1 :: step, step - 1 :: step]
            scale = float(jnp.abs(wanted).max())
            np.testing.assert_allclose(found / scale, wanted / scale, atol=1e-5, err_msg=name)


def test_strides_follow_the_family():
    assert abstract("pspnet_r18").feature_specs["stage4"] == FeatureSpec(32, 8)
    assert abstract("upernet_r18").feature_specs["stage4"] == FeatureSpec(32, 32)
    assert abstract("deeplabv3plus_r18").feature_specs["logits"] == FeatureSpec(5, 4)
    assert "aux_logits" not in abstract("fcn_hr18s").feature_specs


@nnx.jit
def outputs(net, images):
    return maps(net(images))


def compute(net, images):
    """Runs a compiled network, which takes half the time of single operations."""
    return jax.device_get(outputs(net, images.permute(0, 2, 3, 1).numpy()))


def compare_with_pytorch(name, size=IMAGE):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    import torch_networks

    torch.manual_seed(0)
    theirs = torch_networks.create(name, width=8, classes=5)
    images = torch.randn(1, 3, *size)
    with torch.no_grad():
        expected = theirs(images)
    net = abstract(name, width=8)
    interop.from_mmseg(net, theirs.state_dict())
    found = compute(net, images)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        scale = float(value.abs().max())
        np.testing.assert_allclose(
            found[key] / scale, value.permute(0, 2, 3, 1) / scale, atol=2e-5, err_msg=key
        )


@pytest.mark.torch
@pytest.mark.parametrize("name", COMPARED)
def test_all_maps_are_pytorchs(name):
    compare_with_pytorch(name)


@pytest.mark.torch
def test_all_maps_of_a_short_hrnet_are_pytorchs(monkeypatch):
    # One block and one module instead of two or three take a third of the time.
    monkeypatch.setitem(hrnet.VARIANTS, "18s", hrnet.Variant(18, 1, (1, 1, 1)))
    compare_with_pytorch("fcn_hr18s")


@pytest.mark.torch
@pytest.mark.usefixtures("shallow")
def test_all_maps_of_a_short_efficientnet_lite_are_pytorchs():
    # Even and odd sides have different padding.
    compare_with_pytorch("deeplabv3plus_light_efficientnet_lite0", (64, 81))


@pytest.mark.torch
@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_resnet50"])
def test_torchvisions_networks(name):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    segmentation = pytest.importorskip(
        "torchvision.models.segmentation", reason="compares with torchvision"
    )
    torch.manual_seed(0)
    theirs = getattr(segmentation, name)(
        weights=None, weights_backbone=None, num_classes=5, aux_loss=True
    )
    images = torch.randn(1, 3, *IMAGE)
    with torch.no_grad():
        theirs.train()(torch.randn(2, 3, *IMAGE))  # running statistics that are not 0 and 1
        stages = theirs.eval().backbone(images)
        expected = {
            "logits": theirs.classifier(stages["out"]),
            "aux_logits": theirs.aux_classifier(stages["aux"]),
        }
    net = abstract(name, width=64)
    interop.load_weights(net, theirs.state_dict())
    found = compute(net, images)
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value.permute(0, 2, 3, 1), atol=1e-4, err_msg=key)
