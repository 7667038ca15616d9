"""Training next to PyTorch's: gradients, running statistics, twenty steps, details of layers.

The networks there compute in float64, so that what is rounded is rounded here. The worst figures
are printed: `pytest tests/training/test_training_parity.py -rP` shows them.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kdjax import config as configuration
from kdjax import interop, models
from kdjax.distillation import Distiller
from kdjax.models import heads, hrnet, layers, pyramids, swin
from kdjax.models.adapters import NNXNetwork, traced_rngs
from kdjax.models.batch_norm import BatchNorm
from kdjax.models.network import trace_maps
from kdjax.models.outputs import IMAGENET
from kdjax.training.optimizer import OptimizerOptions, learning_rate_schedule, make_optimizer
from kdjax.training.sharding import Placement
from kdjax.training.step import Objective, PreprocessedNetwork, create_state, make_train_step

torch = pytest.importorskip("torch", reason="compares with PyTorch")
import torch_networks  # noqa: E402  they need PyTorch
import torch_transformers  # noqa: E402

from benchmarks.torch.losses import cross_entropy  # noqa: E402
from benchmarks.torch.trainer import (  # noqa: E402
    Execution,
    Recipe,
    Term,
    Trainer,
    normalize,
    settle,
)

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
    """Returns noisy images with a color per class, and labels with an ignored border."""
    coarse = rng.integers(0, CLASSES, (count, -(-height // 8), -(-width // 8)))
    labels = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]
    labels[:, :, :3] = 255
    colors = np.random.default_rng(0).integers(0, 256, (CLASSES, 3))
    images = colors[labels % CLASSES] + rng.normal(0, 40, (count, height, width, 3))
    return {
        "image": np.clip(images, 0, 255).astype(np.uint8),
        "label": labels.astype(np.uint8),
    }


def normalized(images):
    return normalize(torch.from_numpy(images), torch.float64)


def network(name, width=8):
    """Returns a convolutional network with batch norms that do not amplify rounding.

    With the large offsets that comparing outputs wants, some channels are almost dead after their
    ReLU, and batch statistics divide by next to nothing.
    """
    torch.manual_seed(0)
    net = torch_networks.create(name, width, CLASSES)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.bias.data *= 0.1
    return net


def ours_with(theirs, name, width=8):
    """Returns a network of kdjax with PyTorch's weights, and without randomness."""
    net = nnx.eval_shape(
        lambda: models.create(name, num_classes=CLASSES, width=width, rngs=traced_rngs(0))
    )
    interop.from_mmseg(net, theirs.state_dict())
    for _, module in nnx.iter_modules(net):
        if isinstance(module, nnx.Dropout):
            module.rate = 0.0
    return net


class SegFormer(torch_transformers.SegFormer):
    """As `torch_networks` has it: channels first."""

    def forward(self, x):
        maps = super().forward(x.permute(0, 2, 3, 1))
        return {name: x.permute(0, 3, 1, 2) for name, x in maps.items()}


class Swin(torch_transformers.Swin):
    """As the backbones of `torch_networks` are: channels first, a list."""

    def forward(self, x):  # pyright: ignore[reportIncompatibleMethodOverride]
        maps = super().forward(x.permute(0, 2, 3, 1))
        return [x.permute(0, 3, 1, 2) for x in maps.values()]


def upernet_swin(depths):
    torch.manual_seed(0)
    channels = [4 * heads for heads in swin.HEADS]
    return torch_networks.Network(
        Swin(4, depths),
        torch_networks.UPerHead(channels, 64, CLASSES),
        torch_networks.FCNHead(channels[2], 32, CLASSES),
        lambda head, stages: head(stages),
    )


def compare_gradients(theirs, net, *, zero=0):
    """Compares all gradients and running statistics with PyTorch, in training mode.

    `zero` is how many parameters have no influence, as an offset that batch norm takes away again:
    their gradients are rounding on both sides, and are small next to the network's largest.
    """
    batch = make_batch(np.random.default_rng(0), 4, 49, 65)
    theirs = theirs.double().train()
    output = theirs(normalized(batch["image"]))
    labels = torch.from_numpy(batch["label"]).long()
    expected_loss = cross_entropy(output["logits"], labels)
    if "aux_logits" in output:
        expected_loss = expected_loss + 0.4 * cross_entropy(output["aux_logits"], labels)
    expected_loss.backward()

    graphdef, params, rest = nnx.split(net, nnx.Param, ...)
    images, our_labels = IMAGENET(jnp.asarray(batch["image"])), jnp.asarray(batch["label"])

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def step(params):
        net = nnx.merge(graphdef, params, rest, copy=True)
        output = net(images, train=True)
        value, _ = Objective(1.0, 0.4)(
            output.maps,
            None,
            our_labels,
            {},
            {},
            step=jnp.zeros((), jnp.int32),
            steps=1,
            key=jax.random.key(0),
        )
        return value, nnx.state(net, nnx.Not(nnx.Param))

    (value, statistics), gradients = step(params)
    np.testing.assert_allclose(value, expected_loss.item(), rtol=1e-5)
    # Gradients in the places of the parameters get PyTorch's names.
    nnx.update(net, gradients, statistics)
    found = interop.to_mmseg(net)

    expected = {name: x.grad.numpy() for name, x in theirs.named_parameters()}
    scales = {name: np.abs(x).max() for name, x in expected.items()}
    largest = max(scales.values())
    idle = [name for name, scale in scales.items() if scale < 1e-9 * largest]
    assert len(idle) == zero, idle
    scales |= dict.fromkeys(idle, largest)
    check("gradient", found, expected, scales, 1e-3)
    running = {name: x.numpy() for name, x in theirs.named_buffers() if "running" in name}
    scales = {name: np.abs(x).max() for name, x in running.items()}
    check("running statistics", found, running, scales, 1e-4)


def check(what, found, expected, scales, bar):
    """Compares arrays by name, each in units of its scale, and prints the worst."""
    errors = {name: np.abs(found[name] - x).max() / scales[name] for name, x in expected.items()}
    worst = max(errors, key=errors.__getitem__)
    print(f"{what}: {len(errors)} arrays, worst {errors[worst]:.1e} in {worst}")
    assert errors[worst] <= bar, worst


def test_gradients_of_pspnet():
    theirs = network("pspnet_r18")
    compare_gradients(theirs, ours_with(theirs, "pspnet_r18"))


def without_kinks(theirs, net):
    """Gives both an activation without kinks.

    In maps this small one pixel on the other side of ReLU6's two kinks is a tenth of a gradient,
    and among MobileNetV2's 400,000 rounding moves a few: PyTorch's float32 is 0.2 from its own
    float64.
    """
    for module in theirs.modules():
        activation = getattr(module, "activation", None)
        if activation is not None and not isinstance(activation, torch.nn.Identity):
            module.activation = functional.silu
    for _, module in nnx.iter_modules(net):
        if isinstance(module, layers.ConvNorm) and module.activation is not None:
            module.activation = jax.nn.silu


def test_gradients_of_deeplabv3plus_on_mobilenet():
    theirs = network("deeplabv3plus_mbv2")
    net = ours_with(theirs, "deeplabv3plus_mbv2")
    without_kinks(theirs, net)
    compare_gradients(theirs, net, zero=14)


@pytest.mark.usefixtures("shallow")
def test_gradients_of_lraspp_on_a_short_efficientnet_lite():
    theirs = network("lraspp_efficientnet_lite0")
    net = ours_with(theirs, "lraspp_efficientnet_lite0")
    without_kinks(theirs, net)
    compare_gradients(theirs, net, zero=7)


def test_gradients_of_a_short_hrnet(monkeypatch):
    monkeypatch.setitem(hrnet.VARIANTS, "18s", hrnet.Variant(18, 1, (1, 1, 1)))
    theirs = network("fcn_hr18s")
    compare_gradients(theirs, ours_with(theirs, "fcn_hr18s"))


def test_gradients_of_segformer():
    theirs = torch_transformers.randomise(SegFormer(4, (2, 2, 2, 2), 32, CLASSES))
    compare_gradients(theirs, ours_with(theirs, "segformer_b0"), zero=1)


def test_gradients_of_upernet_on_a_short_swin(monkeypatch):
    monkeypatch.setattr(swin, "DEPTHS", (1, 2, 1, 1))
    theirs = upernet_swin((1, 2, 1, 1))
    compare_gradients(theirs, ours_with(theirs, "upernet_swin_t"), zero=2)


def test_twenty_steps_of_channel_wise_distillation():
    # With seed 1, PyTorch's own float32 is three times as far from its float64.
    rng = np.random.default_rng(2)
    batches = [make_batch(rng, 8, 49, 65) for _ in range(STEPS)]
    theirs, their_teacher = network("pspnet_r18"), network("pspnet_r101").double()
    settle(their_teacher, batches[:4])
    # Small scores at first, as training has them. With large ones the first steps are chaotic:
    # on 4 images of 49 x 65, PyTorch's float32 lost its own float64 by 0.13 within 20 steps.
    for head in (theirs.decode_head, theirs.auxiliary_head):
        head.conv_seg.weight.data *= 0.05

    student, teacher = ours_with(theirs, "pspnet_r18"), ours_with(their_teacher, "pspnet_r101")
    distiller = Distiller(
        {"cwd": configuration.term("cwd", weight=3.0, temperature=4.0)},
        student=trace_maps(*NNXNetwork.of(student), (49, 65), train=True),
        teacher=trace_maps(*NNXNetwork.of(teacher), (49, 65), train=False),
    )
    settings = OptimizerOptions()
    optimizer = make_optimizer(settings, STEPS)
    (trained, variables), (frozen, teacher_state) = map(NNXNetwork.of, (student, teacher))
    state = create_state(variables, ({}, {}), optimizer, ema=False)
    train_step = jax.jit(
        make_train_step(
            PreprocessedNetwork(trained, IMAGENET),
            PreprocessedNetwork(frozen, IMAGENET),
            Objective(1.0, 0.4, distiller),
            optimizer,
            learning_rate_schedule(settings, STEPS),
            steps=STEPS,
        )
    )
    errors = []
    cwd = Term("cwd", "cwd", weight=3.0, temperature=4.0)
    trainer = Trainer(theirs.double(), their_teacher, Recipe(STEPS, terms=[cwd]), Execution())
    for batch in batches:
        expected = trainer.step(batch)
        state, metrics = train_step(state, teacher_state, batch)
        errors += [abs(float(metrics[name]) / float(x) - 1) for name, x in expected.items()]
    print(f"{STEPS} steps: worst loss {max(errors):.1e}")
    assert max(errors) <= 1e-3
    student = trained.module(state.student())
    trained = {name: x.numpy() for name, x in theirs.state_dict().items() if x.ndim}
    scales = {name: np.abs(x).max() for name, x in trained.items()}
    check("weights and running statistics", interop.to_mmseg(student), trained, scales, 1e-2)


def layer_input(*shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def compare_layer(ours, theirs, x, **tolerance):
    """Compares a layer's value, and the gradient of a weighted sum by its input."""

    @jax.jit
    def run(x, cotangent):
        value, pull = jax.vjp(ours, x)
        return value, pull(cotangent)[0]

    inputs = channels_first(x).requires_grad_()
    expected = theirs(inputs)
    cotangent = layer_input(*channels_last(expected).shape)
    expected.backward(channels_first(cotangent))
    value, gradient = run(x, cotangent)
    np.testing.assert_allclose(value, channels_last(expected), **tolerance)
    np.testing.assert_allclose(gradient, channels_last(inputs.grad), **tolerance)


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (8, 5)])
def test_max_pooling_is_in_floor_mode(size):
    pool = torch.nn.MaxPool2d(3, 2, 1)
    compare_layer(jax.jit(layers.max_pool), pool, layer_input(2, *size, 3), rtol=1e-6)


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (8, 5)])
def test_max_pooling_in_ceil_mode(size):
    pool = torch.nn.MaxPool2d(3, 2, 1, ceil_mode=True)
    compare_layer(partial(layers.max_pool, ceil=True), pool, layer_input(2, *size, 3), rtol=1e-6)


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
def test_adaptive_pooling_where_the_bins_do_not_divide_the_map_or_outnumber_it(bins):
    compare_layer(
        lambda x: pyramids.adaptive_average_pools(x, (4, bins))[1],
        partial(functional.adaptive_avg_pool2d, output_size=bins),
        layer_input(2, 5, 13, 3),
        atol=1e-6,
    )


@pytest.mark.parametrize("size", [(29, 40), (6, 5), (13, 4)])
def test_resizing_has_half_pixel_centers_and_no_antialiasing(size):
    compare_layer(
        partial(layers.resize, size=size),
        partial(functional.interpolate, size=size, mode="bilinear", align_corners=False),
        layer_input(2, 13, 17, 3),
        atol=1e-5,
    )


@pytest.mark.parametrize("size", [(29, 40), (6, 5), (1, 17)])
def test_resizing_that_aligns_corners(size):
    compare_layer(
        partial(layers.resize, size=size, align_corners=True),
        partial(functional.interpolate, size=size, mode="bilinear", align_corners=True),
        layer_input(2, 13, 17, 3),
        atol=1e-5,
    )


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (2, 2), (1, 12)])
def test_depthwise_convolution(stride, dilation):
    rng = np.random.default_rng(2)
    kernel, bias = rng.standard_normal((3, 3, 1, 4), np.float32), rng.standard_normal(4, np.float32)
    conv = layers.DepthwiseConv(
        4, 3, stride=stride, dilation=dilation, bias=True, dtype=FLOAT32, rngs=nnx.Rngs(0)
    )
    assert conv.bias is not None
    conv.kernel[...], conv.bias[...] = kernel, bias
    theirs = torch.nn.Conv2d(4, 4, 3, stride=stride, padding=dilation, dilation=dilation, groups=4)
    theirs.weight.data, theirs.bias.data = (
        torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()),
        torch.from_numpy(bias),
    )
    x = layer_input(2, 13, 18, 4)
    compare_layer(conv, theirs, x, atol=2e-5)

    graphdef, params = nnx.split(conv)

    @jax.jit
    def by_params(params, cotangent):
        _, pull = jax.vjp(lambda params: nnx.merge(graphdef, params)(x), params)
        return pull(cotangent)[0]

    shape = jax.eval_shape(conv, x).shape
    gradients = by_params(params, layer_input(*shape))
    by_kernel = theirs.weight.grad.permute(2, 3, 1, 0)
    np.testing.assert_allclose(gradients["kernel"][...], by_kernel, atol=1e-4)
    np.testing.assert_allclose(gradients["bias"][...], theirs.bias.grad, atol=1e-4)


@pytest.mark.parametrize("shape", [(8, 1, 1, 3), (8, 5, 4, 3)])
def test_batch_norm_on_one_device_and_on_eight(shape):
    # The variance is so small that the epsilon matters.
    x = 1e-2 * layer_input(*shape)
    theirs = torch.nn.BatchNorm2d(3)
    expected = theirs(channels_first(x))

    @nnx.jit
    def run(norm, x):
        return norm(x, use_running_average=False)

    for images in (x, Placement().put_batch({"x": x})["x"]):
        norm = BatchNorm(3, dtype=FLOAT32, rngs=nnx.Rngs(0))
        np.testing.assert_allclose(run(norm, images), channels_last(expected), atol=1e-5)
        np.testing.assert_allclose(norm.mean[...], theirs.running_mean, rtol=1e-5)
        np.testing.assert_allclose(norm.var[...], theirs.running_var, rtol=1e-6)


def test_dropout_takes_whole_channels():
    classifier = heads.Classifier(200, 2, dropout=0.25, dtype=FLOAT32, rngs=nnx.Rngs(0))
    read = classifier(jnp.ones((8, 3, 4, 200)), train=True, rngs=nnx.Rngs(dropout=0)).inputs
    theirs = torch.nn.Dropout2d(0.25)(torch.ones(8, 200, 3, 4))
    for x in (np.asarray(read), channels_last(theirs)):
        assert np.all(x == x[:, :1, :1])
        np.testing.assert_allclose(np.unique(x), [0, 1 / 0.75], rtol=1e-6)
        np.testing.assert_allclose(x.mean(), 1, atol=0.05)


def test_gelu_is_exact():
    compare_layer(layers.gelu, functional.gelu, 3 * layer_input(1, 8, 8, 8), atol=1e-6)


@pytest.mark.parametrize("epsilon", [1e-5, 1e-6])
def test_layer_norm(epsilon):
    norm = layers.LayerNorm(8, epsilon=epsilon, dtype=FLOAT32, rngs=nnx.Rngs(0))

    def theirs(x):
        return functional.layer_norm(x.permute(0, 2, 3, 1), (8,), eps=epsilon).permute(0, 3, 1, 2)

    # The variance is so small that the epsilon matters.
    compare_layer(norm, theirs, 1e-3 * layer_input(2, 3, 4, 8), rtol=1e-4, atol=1e-4)


def test_only_the_first_block_of_a_dilated_stage_has_half_the_dilation():
    def dilations(name, modules):
        net = nnx.eval_shape(
            lambda: models.create(name, num_classes=2, width=4, rngs=traced_rngs(0))
        )
        return [[block.conv2.conv.kernel_dilation for block in stage] for stage in modules(net)]

    def theirs(name):
        stages = [getattr(network(name, 4).backbone, f"layer{i}") for i in (1, 2, 3, 4)]
        return [[block.conv2.dilation[0] for block in stage] for stage in stages]

    found = dilations("pspnet_r50", lambda net: net.backbone.stages)
    assert found == theirs("pspnet_r50") == [[1] * 3, [1] * 4, [1] + 5 * [2], [2, 4, 4]]
