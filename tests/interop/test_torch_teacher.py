"""PyTorch networks as teachers: in the step, in the cache, in evaluation, and in the examples."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_run
from ml_collections import ConfigDict

import kdjax
from kdjax import config as configuration
from kdjax import models
from kdjax.data import sets
from kdjax.distillation import Distiller
from kdjax.interop import TorchTeacher
from kdjax.models import Preprocessing, make_network, scores_of, serialization
from kdjax.models.network import maps_of, trace_maps
from kdjax.training.sharding import Placement
from kdjax.utils.errors import UserError

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import torch_teachers  # noqa: E402  needs PyTorch

pytestmark = pytest.mark.torch
EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples"
IMAGES = np.random.default_rng(0).standard_normal((8, 16, 24, 3)).astype(np.float32)


def apply(teacher, images=IMAGES):
    return teacher.apply({}, images, train=False, key=None)[0]


def in_torch(module, images=IMAGES):
    with torch.no_grad():
        found = module.eval()(torch.tensor(images).permute(0, 3, 1, 2))
    return found.permute(0, 2, 3, 1).numpy()


def test_the_scores_are_those_of_the_module_in_evaluation_mode():
    module = torch_teachers.network().train()
    found = apply(TorchTeacher(module))["logits"]
    assert found.shape == (8, 4, 6, 3)
    np.testing.assert_allclose(found, in_torch(module), atol=1e-6)


def test_a_compiled_program_on_all_devices_calls_the_module_once():
    module = torch_teachers.network()
    teacher = TorchTeacher(module)
    apply(teacher)
    calls = []
    module.register_forward_pre_hook(lambda module, images: calls.append(images[0].shape))
    placement = Placement(devices=jax.devices())
    images = placement.put_batch({"image": IMAGES})["image"]
    found = jax.jit(lambda x: apply(teacher, x)["logits"])(images)
    np.testing.assert_allclose(found, in_torch(module), atol=1e-6)
    # The last call is the one of `in_torch`.
    assert [tuple(shape) for shape in calls[:-1]] == [(8, 3, 16, 24)]


def test_maps_are_made_in_torch_or_in_jax():
    module = torch_teachers.network()
    found = apply(TorchTeacher(module, forward=torch_teachers.with_features))
    assert {name: value.shape for name, value in found.items()} == {
        "logits": (8, 4, 6, 3),
        "head": (8, 8, 12, 8),
    }
    doubled = TorchTeacher(module, maps=lambda found: jnp.moveaxis(2 * found["logits"], 1, -1))
    np.testing.assert_allclose(apply(doubled), 2 * found["logits"], atol=1e-6)


def test_a_module_in_half_precision_takes_and_returns_single_precision():
    module = torch_teachers.network()
    expected = in_torch(module)
    found = apply(TorchTeacher(module.to(torch.bfloat16)))["logits"]
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=0.05)


def test_threads_and_gradients_of_pytorch_stay_as_they_are():
    before = torch.get_num_threads(), torch.is_grad_enabled()
    apply(TorchTeacher(torch_teachers.network()))
    assert (torch.get_num_threads(), torch.is_grad_enabled()) == before


@pytest.mark.parametrize("changed", ["4.weight", "1.running_var", "1.num_batches_tracked"])
def test_the_fingerprint_covers_every_parameter_and_buffer(changed):
    first = TorchTeacher(torch_teachers.network()).fingerprint
    assert TorchTeacher(torch_teachers.network()).fingerprint == first
    module = torch_teachers.network()
    tensor = {**dict(module.named_parameters()), **dict(module.named_buffers())}[changed]
    with torch.no_grad():
        # The smallest possible change of one number.
        if tensor.is_floating_point():
            flat = tensor.view(-1)
            flat[-1] = torch.nextafter(flat[-1], torch.tensor(9.0))
        else:
            tensor += 1
    assert TorchTeacher(module).fingerprint != first


def test_a_teacher_by_name_has_its_fingerprint_and_its_preprocessing(monkeypatch):
    own = Preprocessing((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    made = TorchTeacher(torch_teachers.network(), preprocessing=own, class_names=("a", "b", "c"))
    monkeypatch.setattr(torch_teachers, "made", made, raising=False)
    info = serialization.load("torch_teachers:made")[2]
    assert info.fingerprint == made.fingerprint
    assert info.preprocessing == own
    assert info.class_names == ("a", "b", "c")


def test_wrong_teachers_are_refused_in_one_line():
    module = torch_teachers.network()
    with pytest.raises(UserError, match="names 3 classes and scores 4"):
        serialization.load("torch_teachers:three_names")
    with pytest.raises(UserError, match='"hidden" of the PyTorch network is of type tuple'):
        apply(TorchTeacher(module, forward=lambda module, images: {"hidden": (images,)}))
    with pytest.raises(UserError, match="the output of the PyTorch network is of type tuple"):
        apply(TorchTeacher(module, forward=lambda module, images: (images,)))
    with pytest.raises(UserError, match=r"is \[3, 16, 24\] for one image; its first axis"):
        apply(TorchTeacher(module, forward=lambda module, images: images[0]))
    with pytest.raises(UserError, match="fails in evaluation on images"):
        # Its input channels do not fit.
        trace_maps(TorchTeacher(torch.nn.Conv2d(4, 3, 1)), {}, (16, 16), train=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named():
    expected = (
        '^torch_teachers:on_gpu: the device is "cuda:1", but PyTorch finds no GPU; use "cpu"$'
    )
    with pytest.raises(UserError, match=expected):
        serialization.load("torch_teachers:on_gpu")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("data")
    tiny_run.write_images(source)
    sets.prepare("folder", target, source=source)
    return target


@pytest.fixture
def config(data_dir):
    config = tiny_run.get_config()
    config.steps, config.eval_every, config.checkpoint_every = 4, 4, 0
    config.data.data_dir = str(data_dir)
    config.teacher.checkpoint = "torch_teachers:teacher"
    with config.unlocked():
        config.terms = ConfigDict({"cwd": configuration.term("cwd")})
    return config


@pytest.mark.thorough
@pytest.mark.parametrize("cached", [False, True])
def test_a_run_of_a_config(config, tmp_path, cached):
    if cached:
        config.teacher.cache = str(tmp_path / "cache")
    result = kdjax.train(config, tmp_path / "run")
    assert result.scores["val"].agreement is not None


def test_evaluation_and_prediction_take_its_name(config):
    network = kdjax.load("torch_teachers:teacher")
    images = np.random.default_rng(0).integers(0, 256, (2, 24, 32, 3), np.uint8)
    assert network.predict(images).shape == (2, 24, 32)


def teaches(teacher, terms, size):
    """The values of the loss in ten compiled steps of a student that learns from a teacher."""
    student = make_network("tiny", num_classes=3, width=4)
    pixels = np.random.default_rng(1).integers(0, 256, (4, *size, 3), np.uint8)
    variables = student.init(jax.random.key(0), jnp.zeros((1, *size, 3)))

    def taught(pixels):
        output = apply(teacher, teacher.preprocessing(pixels))
        return output if isinstance(output, dict) else {"logits": output}

    distiller = Distiller(
        terms,
        student=trace_maps(student, variables, size, train=True),
        teacher=jax.eval_shape(taught, pixels),
    )
    learned, carried = distiller.init(jax.random.key(1))
    params = {"student": variables["params"], "terms": learned}
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state, pixels):
        maps = jax.lax.stop_gradient(taught(pixels))

        def loss_of(params):
            own = {"params": params["student"], "state": variables["state"]}
            seen = models.Preprocessing((120.0,) * 3, (60.0,) * 3)(pixels)
            output, _ = student.apply(own, seen, train=True, key=jax.random.key(2))
            given = maps_of(output), maps
            key = jax.random.key(3)
            return distiller(params["terms"], carried, *given, step=0, steps=10, key=key)[0]

        loss, gradients = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state, loss

    state, values = optimizer.init(params), []
    for _ in range(10):
        params, state, loss = step(params, state, pixels)
        values.append(float(loss))
    return values


@pytest.fixture
def example(monkeypatch):
    """Imports an example, whose library may be missing."""

    def get(name, *libraries):
        for library in libraries:
            pytest.importorskip(library, reason=f"{library} is not installed")
        monkeypatch.syspath_prepend(EXAMPLES)
        return __import__(name)

    return get


SCORES = {"kl": configuration.term("pixelwise_kl")}
FEATURES = {
    "cwd": configuration.term("cwd", student="stage4", teacher="features", weight=1.0),
}
HUGGINGFACE = {
    "segformer": SCORES,
    "mask2former": SCORES,
    "maskformer": SCORES,
    "eomt": SCORES,
    "dinov2": FEATURES,
    "dinov3": FEATURES,
}


@pytest.mark.parametrize("kind", HUGGINGFACE)
def test_models_of_huggingface_teach(example, kind):
    example = example("teacher_huggingface", "transformers")
    import huggingface_models

    normalization = Preprocessing((128.0,) * 3, (64.0,) * 3)
    teacher = example.teacher_of(huggingface_models.model(kind), normalization)
    values = teaches(teacher, HUGGINGFACE[kind], (48, 64))
    assert np.isfinite(values).all()
    assert values[-1] < values[0]


@pytest.mark.parametrize(("kind", "others"), [("dinov2", 1), ("dinov3", 5)])
def test_features_of_vision_transformers_are_in_the_place_of_their_patch(example, kind, others):
    example = example("teacher_huggingface", "transformers")
    import huggingface_models

    model = huggingface_models.model(kind)
    images = np.random.default_rng(0).standard_normal((1, 64, 96, 3)).astype(np.float32)
    teacher = example.teacher_of(model, Preprocessing((0.0,) * 3, (1.0,) * 3))
    found = apply(teacher, images)["features"]
    with torch.no_grad():
        tokens = model(torch.tensor(images).permute(0, 3, 1, 2)).last_hidden_state
    assert found.shape == (1, 4, 6, 16)
    np.testing.assert_allclose(found[0, 2, 3], tokens[0, others + 2 * 6 + 3], atol=1e-5)


def test_the_example_of_huggingface_reads_a_saved_model(example, monkeypatch, tmp_path):
    example = example("teacher_huggingface", "transformers")
    import huggingface_models
    import transformers

    model = huggingface_models.model("segformer")
    model.save_pretrained(tmp_path)
    transformers.SegformerImageProcessor(
        image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]
    ).save_pretrained(tmp_path)
    monkeypatch.setenv("TEACHER", str(tmp_path))
    config = example.get_config()
    configuration.read(config)
    network, variables, info = serialization.load(config.teacher.checkpoint)
    example.teacher.cache_clear()
    assert info.class_names == huggingface_models.NAMES
    np.testing.assert_allclose(info.preprocessing[:2], [[25.5, 51, 76.5], [102, 127.5, 153]])
    images = np.random.default_rng(0).standard_normal((2, 64, 96, 3)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.tensor(images).permute(0, 3, 1, 2)).logits.permute(0, 2, 3, 1)
    found = scores_of(network.apply(variables, images, train=False, key=None)[0])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_model_of_smp_teaches(example, monkeypatch, tmp_path):
    example = example("teacher_smp", "torchvision", "segmentation_models_pytorch")
    import segmentation_models_pytorch as smp

    smp.Unet("resnet18", encoder_weights=None, classes=3).save_pretrained(tmp_path)
    monkeypatch.setenv("TEACHER", str(tmp_path))
    config = example.get_config()
    configuration.read(config)
    teacher = example.teacher()
    example.teacher.cache_clear()
    # 40 is no multiple of 32.
    maps = apply(teacher, np.zeros((1, 40, 64, 3), np.float32))
    assert maps["logits"].shape == (1, 40, 64, 3)
    assert maps["head"].shape == (1, 40, 64, 16)
    values = teaches(teacher, config.terms, (40, 64))
    assert values[-1] < values[0]


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224"])
def test_a_backbone_of_timm_teaches(example, name):
    example = example("teacher_timm", "torchvision", "timm")
    import timm

    size = {"img_size": 64} if "swin" in name else {}
    model = timm.create_model(name, features_only=True, pretrained=False, **size)
    config = example.get_config()
    configuration.read(config)
    teacher = example.teacher_of(model)
    np.testing.assert_allclose(teacher.preprocessing.mean, [123.675, 116.28, 103.53])
    found = apply(teacher, np.zeros((1, 64, 64, 3), np.float32)).values()
    assert [maps.shape[-1] for maps in found] == model.feature_info.channels()
    values = teaches(teacher, config.terms, (64, 64))
    assert values[-1] < values[0]
