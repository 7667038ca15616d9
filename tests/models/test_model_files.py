"""Networks in ONNX and TensorFlow Lite files: how they are read, and what they return."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_up_files import WEIGHTS, needs_onnx, write_onnx

from kdjax.models import serialization
from kdjax.models.file_network import scores_from
from kdjax.models.layers import resize
from kdjax.training.sharding import Placement
from kdjax.utils.errors import UserError

IMAGES = np.random.default_rng(1).integers(0, 256, (3, 30, 46, 3), np.uint8)


def scores_of(path, options, images=IMAGES):
    """Returns the scores as a step computes them, from 8-bit images."""
    network, variables, info = serialization.load(path, options=options)

    def forward(images):
        return network.apply(variables, info.preprocessing(images), train=False, key=None)[0]

    return np.asarray(jax.jit(forward)(images)), info


def expected(images=IMAGES, *, mean=0.0, std=255.0, weights=WEIGHTS):
    return (images.astype(np.float32) - mean) / std @ weights.T


SCALED = {"mean": 0, "std": 255, "multiple": 1}


@needs_onnx
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_an_onnx_file_scores_batches_of_any_size(tmp_path, layout, capsys):
    path = write_onnx(tmp_path / "net.onnx", layout=layout)
    found, info = scores_of(path, {"mean": (10, 20, 30), "std": 50.0, "multiple": 1})
    np.testing.assert_allclose(
        found, expected(mean=np.array([10, 20, 30]), std=50), rtol=1e-4, atol=1e-4
    )
    assert info.name == "net.onnx"
    assert info.num_classes == 4
    assert info.class_names == ("class 0", "class 1", "class 2", "class 3")
    said = capsys.readouterr().out
    assert f"layout={layout} (read), channels=RGB (assumed), mean=10 20 30 (given)" in said
    assert "kind=logits (read)" in said


@needs_onnx
def test_channels_with_blue_first(tmp_path):
    path = write_onnx(tmp_path / "net.onnx")
    options = {**SCALED, "channels": "BGR", "mean": (10, 20, 30)}
    found, _ = scores_of(path, options)
    wanted = expected(mean=np.array([10, 20, 30]), weights=WEIGHTS[:, ::-1])
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@needs_onnx
def test_images_are_padded_to_a_multiple_and_scores_cropped(tmp_path):
    whole, _ = scores_of(write_onnx(tmp_path / "net.onnx"), {**SCALED, "multiple": 32})
    np.testing.assert_allclose(whole, expected(), rtol=1e-4, atol=1e-4)
    path = write_onnx(tmp_path / "strided.onnx", stride=2)
    half, _ = scores_of(path, {**SCALED, "multiple": 32})
    np.testing.assert_allclose(half, expected()[:, ::2, ::2], rtol=1e-4, atol=1e-4)
    # 30 is no multiple of 4, so the scores are those of pixels.
    path = write_onnx(tmp_path / "quarter.onnx", stride=4)
    found, _ = scores_of(path, {**SCALED, "multiple": 32})
    padded = np.pad(IMAGES, ((0, 0), (0, 2), (0, 18), (0, 0)), mode="edge")
    wanted = resize(jnp.asarray(expected(padded)[:, ::4, ::4]), (32, 64))[:, :30, :46]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@needs_onnx
@pytest.mark.parametrize("batch", [1, 2])
def test_a_file_of_one_size_gets_resized_images_in_its_batches(tmp_path, batch):
    path = write_onnx(tmp_path / "net.onnx", size=(16, 24), batch=batch)
    found, _ = scores_of(path, {"mean": 0, "std": 255})
    pixels = jax.image.resize(IMAGES.astype(np.float32), (3, 16, 24, 3), "linear")
    # The scores get back the size of the images, because the file's output has stride 1.
    wanted = resize(jnp.asarray(expected(np.asarray(pixels))), IMAGES.shape[1:3])
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@needs_onnx
@pytest.mark.parametrize("size", [(16, 24), (40, 64)])
def test_tiles_cover_the_image_with_its_own_pixels(tmp_path, size):
    path = write_onnx(tmp_path / "net.onnx", size=size, batch=1)
    found, _ = scores_of(path, {"mean": 0, "std": 255, "fit": "tile"})
    np.testing.assert_allclose(found, expected(), rtol=1e-4, atol=1e-4)


@needs_onnx
@pytest.mark.parametrize("kind", ["Softmax", "Sigmoid", None])
def test_probabilities_become_scores_with_these_probabilities(tmp_path, kind, capsys):
    weights = WEIGHTS if kind == "Softmax" else WEIGHTS[:1]
    last = {"Softmax": [("Softmax", {"axis": 1})], "Sigmoid": [("Sigmoid", {})], None: []}[kind]
    path = write_onnx(tmp_path / "net.onnx", weights=weights, last=last)
    found, info = scores_of(path, {**SCALED, "classes": "text"} if len(weights) == 1 else SCALED)
    if len(weights) == 1:
        assert info.class_names == ("background", "text")
        wanted = jax.nn.sigmoid(expected(weights=weights))
        np.testing.assert_allclose(jax.nn.softmax(found)[..., 1:], wanted, atol=1e-5)
    else:
        np.testing.assert_allclose(jax.nn.softmax(found), jax.nn.softmax(expected()), atol=1e-5)
    named = {"Softmax": "probabilities", "Sigmoid": "sigmoid", None: "logits"}[kind]
    assert f"kind={named} (read)" in capsys.readouterr().out


def test_scores_are_finite_where_probabilities_are_0_or_1():
    single = scores_from(jnp.array([0.0, 1.0, 0.5])[:, None], "sigmoid")
    np.testing.assert_allclose(single, [[6.9, -6.9], [-6.9, 6.9], [0, 0]], atol=0.02)
    several = scores_from(jnp.array([[0.0, 1.0]]), "probabilities", 0.01)
    np.testing.assert_allclose(several, [[np.log(0.01), 0]], atol=1e-6)


@needs_onnx
def test_one_of_several_outputs_is_named(tmp_path):
    path = write_onnx(tmp_path / "net.onnx", last=[("Neg", {}), ("Relu", {})])
    with pytest.raises(UserError, match=r'2 outputs may be .* "Neg.out" .*"scores" float32'):
        serialization.load(path, options=SCALED)
    for name in ("Neg.out", "0", 0):
        found, _ = scores_of(path, {**SCALED, "output": name})
        np.testing.assert_allclose(found, -expected(), rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="there is no output 2; its outputs are"):
        serialization.load(path, options={**SCALED, "output": 2})


@needs_onnx
@pytest.mark.parametrize(
    ("made", "options", "message"),
    [
        (
            {"weights": np.ones((2, 20), np.float32)},
            {},
            r'"images" float32 \[any, 20, any, any\]; a',
        ),
        (
            {},
            {"layout": "NHWC"},
            r"takes images of one size or of any, \[batch, height, width, 3\]",
        ),
        (
            {"size": ("h", 32)},
            {},
            r"\[any, 3, any, 32\]; a teacher takes images of one size or",
        ),
        ({"size": (16, 32)}, {"fit": "pad"}, "fit is pad; the file takes images of 16 x 32 alone"),
        ({"last": [("ArgMax", {"axis": 1})]}, {}, "a teacher needs class scores, not class ids"),
        ({"last": [("GlobalAveragePool", {})]}, {}, "have the ratio of the input's 64 x 96"),
        ({}, {"kind": "probabilities"}, "has values from .* on a random image: use logits"),
        ({}, {"kind": "sigmoid"}, "has 4 channels, which hold logits or probabilities"),
        ({}, {"kind": "logit"}, 'options.kind is "logit"; it must be auto or logits'),
        ({}, {"std": 0.229}, r"std is 0.229; it must be 1 or more, in the units of 8-bit pixels"),
        ({}, {"mean": (1, 2)}, "give one number or 3"),
        ({}, {"channel": "BGR"}, 'options.channel is not known: did you mean "channels"'),
        ({}, {"classes": ("a", "b")}, "names 2 classes, 2 of them different; the file scores 4"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, made, options, message):
    path = write_onnx(tmp_path / "net.onnx", **made)
    with pytest.raises(UserError, match=message) as raised:
        serialization.load(path, options=options)
    assert "\n" not in str(raised.value)
    assert "net.onnx" in str(raised.value)


def test_a_file_that_is_missing_or_damaged(tmp_path):
    pytest.importorskip("onnxruntime")
    with pytest.raises(UserError, match=r"net\.onnx: there is no such file"):
        serialization.load(tmp_path / "net.onnx")
    assert serialization.fingerprint_in(tmp_path / "net.onnx") is None
    (tmp_path / "net.onnx").write_bytes(b"no network")
    with pytest.raises(UserError, match="ONNX Runtime cannot load this file"):
        serialization.load(tmp_path / "net.onnx")
    with pytest.raises(UserError, match="must be on a local disk"):
        serialization.load("gs://bucket/net.onnx")
    with pytest.raises(UserError, match="sets its dtype by itself"):
        serialization.load(tmp_path / "net.onnx", dtype="bfloat16")


@needs_onnx
def test_the_fingerprint_follows_the_weights_and_the_options(tmp_path):
    def of(options=SCALED, **made):
        # onnx appends to a file of weights that exists.
        (tmp_path / "w.bin").unlink(missing_ok=True)
        return serialization.fingerprint_in(write_onnx(tmp_path / "net.onnx", **made), options)

    first = of()
    assert first == of() == of({**SCALED, "channels": "RGB"})
    others = [
        of(weights=WEIGHTS * np.float32(1 + 1e-6)),
        of({**SCALED, "channels": "BGR"}),
        of(external=True),
        of(external=True, weights=WEIGHTS * np.float32(1 + 1e-6)),
    ]
    assert len({first, *others}) == 5


@needs_onnx
def test_a_step_on_several_devices_calls_the_file(tmp_path):
    path = write_onnx(tmp_path / "net.onnx")
    network, variables, info = serialization.load(path, options=SCALED)
    placement = Placement(devices=jax.devices()[:2])
    images = np.concatenate([IMAGES, IMAGES[:1]])

    def forward(images):
        scores, _ = network.apply(variables, info.preprocessing(images), train=False, key=None)
        return scores, scores.mean()

    scores, mean = jax.jit(forward)(placement.put_images(images))
    np.testing.assert_allclose(scores, expected(images), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(mean, expected(images).mean(), rtol=1e-4, atol=1e-4)


@needs_onnx
def test_an_export_of_kdjax_names_its_classes(tmp_path):
    path = write_onnx(tmp_path / "student.onnx")
    description = {"class_names": [*"abcd"], "exports": {"onnx": {"file": "student.onnx"}}}
    (tmp_path / "export.json").write_text(json.dumps(description))
    found, info = scores_of(path, {"mean": 0, "std": 255})
    assert info.class_names == ("a", "b", "c", "d")
    np.testing.assert_allclose(found, expected(), rtol=1e-4, atol=1e-4)


def write_tflite(path, *, quantized=False, size=(30, 46)):
    """Writes a convolution of 1 x 1 as a TensorFlow Lite file."""
    tf = pytest.importorskip("tensorflow")
    kernel = tf.constant(WEIGHTS.T[None, None])

    class Network(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([1, *size, 3], tf.float32)])
        def __call__(self, images):
            return tf.nn.conv2d(images, kernel, 1, "SAME")

    network = Network()
    function = network.__call__.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], network)
    if quantized:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.inference_input_type = converter.inference_output_type = tf.uint8
        images = IMAGES.astype(np.float32) / 255
        converter.representative_dataset = lambda: ([image[None]] for image in images)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    path.write_bytes(converter.convert())
    return str(path)


def test_a_tflite_file_scores_a_batch_image_by_image(tmp_path):
    found, _ = scores_of(write_tflite(tmp_path / "net.tflite"), {})
    np.testing.assert_allclose(found, expected(), rtol=1e-4, atol=1e-4)


def test_a_quantized_tflite_file_takes_the_pixels_themselves(tmp_path, capsys):
    found, info = scores_of(write_tflite(tmp_path / "net.tflite", quantized=True), {})
    np.testing.assert_allclose(info.preprocessing.std, 255, rtol=0.02)
    assert np.abs(found - expected()).max() < 0.05 * np.abs(expected()).max()
    assert "mean=0 0 0 (read)" in capsys.readouterr().out
