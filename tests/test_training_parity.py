"""Training next to PyTorch's: gradients, running statistics, twenty steps, details of layers.

The networks there compute in float64, so that what is rounded is rounded here. What is compared is
printed: `pytest tests/test_training_parity.py -rP` shows it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kdjax import config as configuration
from kdjax import interop, models
from kdjax.distillation import terms as distillation_terms
from kdjax.distillation.objective import Objective
from kdjax.models import attention, hrnet, layers, swin
from kdjax.models.preprocessing import IMAGENET
from kdjax.training.optimizer import learning_rate_schedule, make_optimizer
from kdjax.training.sharding import Placement
from kdjax.training.state import create_state
from kdjax.training.step import Side, make_train_step

torch = pytest.importorskip("torch", reason="compares with PyTorch")
import torch_networks  # noqa: E402  they need PyTorch
import torch_transformers  # noqa: E402

functional = torch.nn.functional
pytestmark = pytest.mark.torch

FLOAT32 = jnp.dtype("float32")
CLASSES = 5
STEPS = 20


def channels_first(x):
    return torch.from_numpy(np.moveaxis(np.asarray(x), -1, 1).copy())


def channels_last(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


def make_batch(rng, count, height, width):
    """Images, and labels in blobs with a border that is ignored."""
    coarse = rng.integers(0, CLASSES, (count, -(-height // 8), -(-width // 8)))
    labels = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]
    labels[:, :, :3] = 255
    means = rng.integers(0, 256, (CLASSES, 3))[labels % CLASSES]
    noise = rng.normal(0, 40, (count, height, width, 3))
    return {
        "image": np.clip(means + noise, 0, 255).astype(np.uint8),
        "label": labels.astype(np.uint8),
    }


def normalised(images):
    mean, std = (torch.tensor(x, dtype=torch.float64) for x in IMAGENET)
    return ((torch.from_numpy(images) - mean) / std).permute(0, 3, 1, 2)


def cross_entropy(logits, labels):
    labels = torch.from_numpy(labels).long()
    logits = functional.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)
    return functional.cross_entropy(logits, labels, ignore_index=255)


def ours_with(theirs, name, width):
    """A network of kdjax with the weights of PyTorch's, and without any randomness."""
    net = nnx.eval_shape(
        lambda: models.create(name, num_classes=CLASSES, width=width, rngs=nnx.Rngs(0))
    )
    interop.from_mmseg(net, theirs.state_dict())
    for _, module in nnx.iter_modules(net):
        if isinstance(module, nnx.Dropout):
            module.rate = 0.0
    return net


class ChannelsFirst(torch.nn.Module):
    """A transformer as the backbones of `torch_networks` are: images to a list of maps."""

    def __init__(self, transformer):
        super().__init__()
        self.inner = transformer


def segformer():
    class SegFormer(torch_transformers.SegFormer):
        def forward(self, images):
            maps = super().forward(images.permute(0, 2, 3, 1))
            return {name: x.permute(0, 3, 1, 2) for name, x in maps.items()}

    return torch_transformers.randomise(SegFormer(4, (2, 2, 2, 2), 32, CLASSES))


def upernet_swin(depths):
    class Swin(torch_transformers.Swin):
        def forward(self, images):
            maps = super().forward(images.permute(0, 2, 3, 1))
            return [x.permute(0, 3, 1, 2) for x in maps.values()]

    channels = [4 * heads for heads in (3, 6, 12, 24)]
    return torch_networks.Network(
        Swin(4, depths),
        torch_networks.UPerHead(channels, 64, CLASSES),
        torch_networks.FCNHead(channels[2], 32, CLASSES),
        lambda head, stages: head(stages),
    )


def compare_gradients(theirs, name, size):
    """Holds the gradient of every parameter, and the running statistics, against PyTorch's."""
    batch = make_batch(np.random.default_rng(0), 4, *size)
    net = ours_with(theirs, name, width=8)

    theirs = theirs.double().train()
    output = theirs(normalised(batch["image"]))
    expected_loss = cross_entropy(output["logits"], batch["label"])
    if "aux_logits" in output:
        expected_loss = expected_loss + 0.4 * cross_entropy(output["aux_logits"], batch["label"])
    expected_loss.backward()

    graphdef, params, rest = nnx.split(net, nnx.Param, ...)
    images, labels = IMAGENET(jnp.asarray(batch["image"])), jnp.asarray(batch["label"])

    def loss(params):
        net = nnx.merge(graphdef, params, rest, copy=True)
        output = net(images, train=True)
        value, _, _ = Objective(1.0, 0.4)(output, None, labels, {}, {}, jnp.zeros(()))
        return value, nnx.state(net, nnx.Not(nnx.Param))

    # Op by op: compiling the network as a whole takes longer.
    (value, statistics), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    np.testing.assert_allclose(value, expected_loss.item(), rtol=1e-5)

    # Gradients in the parameters' places come out under PyTorch's names.
    nnx.update(net, gradients, statistics)
    found = interop.to_mmseg(net)
    expected = {key: x.grad.numpy() for key, x in theirs.named_parameters()}
    largest = max(np.abs(x).max() for x in expected.values())
    worst, zero = (0.0, ""), (0.0, "")
    count = 0
    for key, gradient in expected.items():
        scale, difference = np.abs(gradient).max(), np.abs(found[key] - gradient).max()
        if scale < 1e-9 * largest:
            count+=1
            zero = max(zero, (difference / largest, key))
        else:
            worst = max(worst, (difference / scale, key))
    buffers = {key: x.numpy() for key, x in theirs.named_buffers() if "running" in key}
    stats = max((np.abs(found[key]-x).max()/np.abs(x).max(), key) for key, x in buffers.items())
    print(name, len(expected), worst, count, zero, stats)


def test_pspnet():
    torch.manual_seed(0)
    compare_gradients(torch_networks.create("pspnet_r18", 8, CLASSES), "pspnet_r18", (49, 65))

def test_deeplab():
    torch.manual_seed(0)
    compare_gradients(torch_networks.create("deeplabv3plus_mbv2", 8, CLASSES), "deeplabv3plus_mbv2", (49, 65))

def test_hrnet(monkeypatch):
    monkeypatch.setitem(hrnet.PLANS, "18s", hrnet.Plan(18, 1, (1, 1, 1)))
    torch.manual_seed(0)
    compare_gradients(torch_networks.create("fcn_hr18s", 8, CLASSES), "fcn_hr18s", (49, 65))

def test_segformer():
    compare_gradients(segformer(), "segformer_b0", (49, 65))

def test_swin(monkeypatch):
    monkeypatch.setattr(swin, "DEPTHS", (1, 2, 1, 1))
    torch.manual_seed(0)
    compare_gradients(upernet_swin((1, 2, 1, 1)), "upernet_swin_t", (49, 65))
