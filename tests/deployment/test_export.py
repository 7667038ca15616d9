"""Exported files label images as the network does, or nothing is written."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import resource
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import thorough
import tiny_run
import warm
from flax import nnx

from kdjax import config as configuration
from kdjax import deployment, models
from kdjax.data import sets
from kdjax.deployment import agreement, formats
from kdjax.deployment.formats import ANY, Size
from kdjax.evaluation.evaluator import Predictor
from kdjax.experiment.workdir import Workdir
from kdjax.models import NNXNetwork, serialization
from kdjax.models.layers import ConvNorm, resize
from kdjax.models.pyramids import adaptive_average_pools
from kdjax.utils.bands import RGB
from kdjax.utils.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
needs_onnx = pytest.mark.skipif(
    importlib.util.find_spec("jax2onnx") is None,
    reason='needs jax2onnx: pip install ".[onnx]" && pip install --no-deps jax2onnx==0.17.1',
)
# ONNX and int8 have their own tests, which are skipped without their packages.
OTHERS = ["stablehlo", "savedmodel", "tflite"]
SIZE = Size(32, 48)
CLASSES = 5


def described(name):
    return serialization.NetworkInfo(
        name=name,
        num_classes=CLASSES,
        width=4,
        auxiliary=True,
        class_names=tuple("abcde"),
        palette=((0, 0, 0),) * CLASSES,
    )


@pytest.fixture(scope="module")
def net():
    net = models.create("tiny", num_classes=CLASSES, width=4, rngs=nnx.Rngs(0))
    generator = np.random.default_rng(0)
    for _, module in nnx.iter_modules(net):
        if isinstance(module, nnx.BatchNorm):
            module.var[...] = jnp.asarray(generator.uniform(0.5, 2, module.var.shape), jnp.float32)
    return net


@pytest.fixture(scope="module")
def source(net, tmp_path_factory):
    """Makes a finished workdir with a student."""
    workdir = tmp_path_factory.mktemp("run")
    serialization.save(workdir / "student", described("tiny"), NNXNetwork.of(net)[1])
    return str(workdir)


def random_images(*shape):
    return np.random.default_rng(2).integers(0, 256, (*shape, 3)).astype(np.uint8)


@pytest.mark.parametrize("returned", ["scores", "probabilities"])
@pytest.mark.parametrize("name", [*OTHERS, pytest.param("onnx", marks=needs_onnx)])
def test_every_format_can_return_class_scores(net, source, tmp_path, name, returned):
    (written,) = deployment.export(source, tmp_path / "out", name, size=SIZE, returned=returned)
    network, state = NNXNetwork.of(net)
    predictor = Predictor(network, described("tiny").preprocessing)
    images = random_images(1, *SIZE)
    expected = predictor.scores(state, images)
    if returned == "probabilities":
        expected = jax.nn.softmax(expected)
    student = deployment.ExportedStudent.load(tmp_path / "out" / written.file)
    found = np.asarray(student.run(images))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_array_equal(student.predict(images), found.argmax(-1))
    text = json.loads((tmp_path / "out" / "export.json").read_text())
    assert text["output"] == {
        "name": returned,
        "type": "float32",
        "shape": ["batch", "height", "width", "class"],
    }


def test_an_unknown_result_is_one_line(source, tmp_path):
    with pytest.raises(UserError, match=r'unknown result "logits".*scores'):
        deployment.export(source, tmp_path / "out", "stablehlo", returned="logits")


@pytest.mark.parametrize("folded", thorough.after(1, [False, True]))
def test_every_format_labels_images_as_evaluation_does(net, source, tmp_path, folded):
    output = tmp_path / "new" / "export"
    exports = deployment.export(source, str(output), OTHERS, size=SIZE, folded=folded)
    assert [export.format for export in exports] == OTHERS
    assert {path.name for path in output.iterdir()} == {
        *(export.file for export in exports),
        "export.json",
    }
    assert list(output.parent.iterdir()) == [output]
    network, state = NNXNetwork.of(net)
    predictor = Predictor(network, described("tiny").preprocessing)
    for export in exports:
        chosen = formats.FORMATS[export.format]
        label = chosen.read(output / export.file)
        # Other batches and sizes than the export's own comparison uses.
        shapes = [(3, 41, 50), (1, 33, 32)] if chosen.flexible else [(3, *SIZE)]
        for shape in shapes:
            images = random_images(*shape)
            expected = np.asarray(predictor(state, images))
            found = np.asarray(label(images))
            assert found.dtype == np.int32
            assert len(np.unique(expected)) > 1
            assert np.mean(found == expected) > 0.999
        assert export.size == (ANY if chosen.flexible else SIZE)
        assert export.agreement.agreeing > 0.999 * export.agreement.pixels

    described_by = json.loads((output / "export.json").read_text())
    assert described_by["class_names"] == list("abcde")
    assert described_by["batch_norm_folded"] is folded
    assert described_by["exports"]["tflite"]["input_shape"] == [1, 32, 48, 3]
    assert described_by["exports"]["stablehlo"]["input_shape"] == [None, None, None, 3]


def test_int8_is_calibrated_on_the_images_given(net, source, tmp_path):
    images = list(random_images(4, *SIZE))
    (export,) = deployment.export(
        source, tmp_path / "export", "tflite_int8", size=SIZE, calibration=images, folded=True
    )
    assert export.agreement.agreeing > 0.9 * export.agreement.pixels
    held = json.loads((tmp_path / "export" / "export.json").read_text())["exports"]["tflite_int8"]
    assert held["input_shape"] == [1, *SIZE, 3]
    found = deployment.measure(tmp_path / "export" / export.file, rounds=2)
    assert (found.file, found.bytes, found.size) == (export.file, export.bytes, SIZE)
    low, median, high = found.milliseconds
    assert 0 < low <= median <= high
    with pytest.raises(UserError, match="only 0 % of its labels are the network's"):
        agreement.compare_predictions(
            lambda x: np.full(x.shape[:3], CLASSES),
            *NNXNetwork.of(net),
            described("tiny").preprocessing,
            [np.stack(images)],
            least=0.5,
        )


def test_calibration_takes_images_of_the_files_size(source, tmp_path):
    for images, said in (
        (
            None,
            "tflite_int8 is calibrated on images of the training split: give --int8 --calibrate "
            "DIR",
        ),
        (
            [random_images(9, 9)],
            "an image for calibration is uint8 [9, 9, 3], and the file takes uint8 [32, 48, 3]: "
            "give its --height and --width",
        ),
    ):
        with pytest.raises(UserError) as error:
            deployment.export(
                source, tmp_path / "export", "tflite_int8", size=SIZE, calibration=images
            )
        assert str(error.value) == said
    assert not (tmp_path / "export").exists()


@needs_onnx
@pytest.mark.parametrize("size", [ANY, SIZE])
def test_onnx_is_one_file_of_an_open_batch_and_of_any_size_or_the_given(
    net, source, tmp_path, size
):
    (export,) = deployment.export(source, tmp_path / "export", "onnx", size=size)
    assert export.size == size
    assert export.agreement.agreeing > 0.999 * export.agreement.pixels
    student = deployment.ExportedStudent.load(tmp_path / "export" / "student.onnx")
    assert {path.name for path in (tmp_path / "export").iterdir()} == {
        "student.onnx",
        "export.json",
    }
    network, variables = NNXNetwork.of(net)
    predictor = Predictor(network, described("tiny").preprocessing)
    for count in (1, 3):
        images = random_images(count, *(size if size.fixed else (41, 50)))
        found = student.predict(images)
        assert found.dtype == np.int32
        assert np.mean(found == np.asarray(predictor(variables, images))) > 0.999


@pytest.mark.parametrize("module", ["jax2onnx", "onnxruntime"])
def test_without_onnx_a_line_says_what_to_install(tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    path = tmp_path / "student.onnx"
    use = {
        "jax2onnx": lambda: formats.write_onnx(lambda images: images[..., 0], SIZE, path),
        "onnxruntime": lambda: formats.read_onnx(path),
    }
    with pytest.raises(UserError) as error:
        use[module]()
    assert str(error.value) == (
        f"{module} is not installed, which the format onnx needs: "
        'pip install "kdjax[onnx]" && pip install --no-deps jax2onnx==0.17.1'
    )
    assert not list(tmp_path.iterdir())


def test_the_auxiliary_head_is_not_written(net, source, tmp_path):
    (export,) = deployment.export(source, str(tmp_path / "a"), ["stablehlo"])
    without = models.create("tiny", num_classes=CLASSES, width=4, auxiliary=False, rngs=nnx.Rngs(0))
    label = formats.make_predict_fn(*NNXNetwork.of(without), described("tiny").preprocessing)
    path = tmp_path / "b"
    formats.FORMATS["stablehlo"].write(label, ANY, path)
    # The weights of the head are 740 bytes. The stack traces of the operations differ, too.
    assert abs(export.bytes - path.stat().st_size) < 500


@pytest.mark.parametrize(
    ("name", "expected"), [("tiny", True), ("pspnet_r18", False), ("segformer_b0", False)]
)
@pytest.mark.usefixtures("shallow")
def test_networks_that_compute_with_their_images_size_are_recognized(name, expected):
    net = nnx.eval_shape(
        lambda: models.create(name, num_classes=CLASSES, width=4, rngs=nnx.Rngs(0))
    )
    network, state = NNXNetwork.of(net)
    predictor = Predictor(network, described(name).preprocessing)

    def label(images):
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state)
        return predictor(zeros, images)

    assert formats.takes_any_size(label) is expected


def test_tensorflow_lite_repeats_a_pooled_image_right(tmp_path):
    # As in PSPNet. As an interpolation, the converted file returned wrong numbers.
    branch = ConvNorm(3, 8, 1, dtype=jnp.float32, rngs=nnx.Rngs(0))

    def enlarged(images):
        pooled, *_ = adaptive_average_pools(images.astype(jnp.float32) / 255, (1, 2))
        return resize(branch(pooled, train=False), (8, 12))

    path = tmp_path / "resize.tflite"
    formats.FORMATS["tflite"].write(enlarged, Size(64, 96), path)
    images = random_images(1, 64, 96)
    found = formats.FORMATS["tflite"].read(path)(images)
    np.testing.assert_allclose(found, enlarged(images), rtol=1e-5, atol=1e-5)


def refuse(source, output, names, size=ANY):
    with pytest.raises(UserError) as error:
        deployment.export(str(source), str(output), names, size=size)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.thorough
@pytest.mark.usefixtures("shallow")
def test_a_network_that_needs_a_size_says_so_and_takes_the_given_one(tmp_path):
    net = models.create("pspnet_r18", num_classes=CLASSES, width=2, rngs=nnx.Rngs(0))
    info = described("pspnet_r18")
    serialization.save(tmp_path / "net", dataclasses.replace(info, width=2), NNXNetwork.of(net)[1])
    output = tmp_path / "export"
    assert refuse(tmp_path / "net", output, ["stablehlo"]) == (
        "pspnet_r18 cannot be exported for images of any size, since it computes with their size: "
        "give --height and --width"
    )
    assert not output.exists()
    (export,) = deployment.export(str(tmp_path / "net"), str(output), ["stablehlo"], size=SIZE)
    assert export.size == SIZE


def test_labels_that_are_wrong_are_an_error_and_nothing_stays(net, source, tmp_path, monkeypatch):
    right = formats.FORMATS["stablehlo"]

    def read_wrong(path):
        label = right.read(path)
        return lambda images: np.asarray(label(images)) * 0 + 3

    monkeypatch.setitem(formats.FORMATS, "stablehlo", right._replace(read=read_wrong))
    message = refuse(source, tmp_path / "export", ["stablehlo"])
    assert message.startswith("stablehlo: nothing is written, since ")
    assert message.endswith("labels are not the network's, by more than rounding")
    assert not list(tmp_path.iterdir())


def test_only_ties_may_differ(net):
    preprocessing = described("tiny").preprocessing
    label = formats.make_predict_fn(*NNXNetwork.of(net), preprocessing)
    images = random_images(1, 32, 48)
    # With two equal classes, either label is right, and a third one is wrong.
    twins = nnx.clone(net)
    conv = twins.head.classifier.conv
    conv.kernel[...] = conv.kernel[...].at[..., 1].set(conv.kernel[..., 0])
    conv.bias[...] = jnp.asarray([9.0, 9.0, 0.0, 0.0, 0.0])
    found = agreement.compare_predictions(
        lambda x: label(x) * 0 + 1, *NNXNetwork.of(twins), preprocessing, [images]
    )
    # Processors may round the two equal classes differently, so a label may agree by chance.
    assert found.pixels == 32 * 48
    assert found.agreeing < found.pixels / 10
    for wrong in (2, -1, CLASSES):
        with pytest.raises(UserError, match="1536 of 1536 labels are not"):
            agreement.compare_predictions(
                lambda x, w=wrong: label(x) * 0 + w, *NNXNetwork.of(twins), preprocessing, [images]
            )
    conv.bias[...] = jnp.full(CLASSES, jnp.nan)
    with pytest.raises(UserError, match="1536 of 1536 labels are not"):
        agreement.compare_predictions(
            lambda x: label(x) * 0 + 1, *NNXNetwork.of(twins), preprocessing, [images]
        )
    with pytest.raises(UserError, match=r"by \(1, 32\) instead of \(1, 32, 48\)"):
        agreement.compare_predictions(
            lambda x: label(x)[..., 0], *NNXNetwork.of(net), preprocessing, [images]
        )


@pytest.fixture(scope="module")
def exported(source, tmp_path_factory):
    output = tmp_path_factory.mktemp("exported") / "files"
    deployment.export(source, output, ["stablehlo", "savedmodel", "tflite"], size=SIZE)
    return output


# An offset outside the file crashes TensorFlow Lite.
CRAFTED = b"\xf0\xff\xff\x7fTFL3" + bytes(24)


@pytest.mark.parametrize("content", [b"", CRAFTED, bytes(range(256)), None])
@pytest.mark.parametrize("name", ["student.stablehlo", "savedmodel", "student.tflite"])
def test_a_damaged_file_is_refused_before_its_runtime_reads_it(exported, tmp_path, name, content):
    """With None, the file is truncated."""
    output = tmp_path / "files"
    shutil.copytree(exported, output)
    file = output / name
    damaged = file / "saved_model.pb" if file.is_dir() else file
    damaged.write_bytes(damaged.read_bytes()[:-9] if content is None else content)
    with pytest.raises(UserError, match=rf"{name}: this is not the file that .*export\.json desc"):
        deployment.measure(file)


def test_a_file_that_its_runtime_cannot_load_is_one_line(exported, tmp_path):
    output = tmp_path / "files"
    shutil.copytree(exported, output)
    description = output / "export.json"
    whole = json.loads(description.read_text())

    file = output / "student.stablehlo"
    file.write_bytes(b"of another version")
    whole["exports"]["stablehlo"]["sha256"] = formats.digest(file)
    description.write_text(json.dumps(whole))
    with pytest.raises(UserError, match=r"stablehlo: this file cannot be loaded: ") as error:
        deployment.measure(file)
    assert "\n" not in str(error.value)


def described_as(shape, **more):
    held = {"tflite": {"input_shape": shape, **more}}
    return json.dumps({"class_names": ["a"], "exports": held})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "null",
        '{"exports": 3}',
        described_as([1, 32, 48], sha256=""),
        described_as([1, 32, 48, 3]),
    ],
    ids=lambda text: text[:60],
)
def test_a_damaged_description_is_one_line(tmp_path, text):
    (tmp_path / "student.tflite").write_bytes(CRAFTED)
    (tmp_path / "export.json").write_text(text)
    with pytest.raises(UserError, match=r"export\.json: it must lie beside student\.tflite, as"):
        deployment.measure(tmp_path / "student.tflite")


def test_mistakes_are_one_line_and_nothing_is_written(source, tmp_path):
    output = tmp_path / "export"
    assert refuse(tmp_path, output, ["stablehlo"]).startswith(
        f"{tmp_path}: no network checkpoint here"
    )
    assert refuse(source, output, ["tflit"]) == 'unknown format "tflit": did you mean "tflite"?'
    assert refuse(source, output, ["stablehlo", "tflite"]) == (
        "tflite takes images of one size: give --height and --width"
    )
    assert refuse(source, "gs://bucket/export", ["stablehlo"]) == (
        "gs://bucket/export: exports are written to a local directory"
    )
    assert not list(tmp_path.iterdir())

    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    assert refuse(source, full, ["stablehlo"]) == f"{full}: exists already; name a new directory"
    inside = full / "file" / "export"
    assert refuse(source, inside, ["stablehlo"]) == (
        f"cannot write {inside}: {full / 'file'} is a file"
    )
    (tmp_path / "link").symlink_to("nowhere")
    assert refuse(source, tmp_path / "link", ["stablehlo"]).endswith(
        "link: exists already; name a new directory"
    )
    long = tmp_path / (300 * "n")
    assert refuse(source, long, ["stablehlo"]) == f"cannot write {long}: File name too long"


@contextlib.contextmanager
def full_disk():
    """Limits the size of files, so that writing fails as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("name", [*OTHERS, pytest.param("onnx", marks=needs_onnx)])
def test_a_full_disk_is_one_line_and_nothing_stays(source, tmp_path, monkeypatch, name):
    chosen = formats.FORMATS[name]

    def write(label, size, path, *, returned, bands):
        assert (returned, bands) == ("labels", RGB)
        with full_disk():
            chosen.write(lambda images: jnp.sum(images, -1, dtype=jnp.int32), size, path)

    monkeypatch.setitem(formats.FORMATS, name, chosen._replace(write=write))
    output = tmp_path / "export"
    assert refuse(source, output, [name], SIZE) == f"cannot write {output}: File too large"
    assert not list(tmp_path.iterdir())


# Runs the command in a process that knows the tiny network.
COMMAND = """
import runpy, sys, conftest
sys.argv.insert(1, "export")
runpy.run_module("kdjax", run_name="__main__", alter_sys=True)
"""


def test_the_command_says_what_it_wrote(source, tmp_path):
    def run(*arguments):
        flags = [f"--source={source}", f"--output={tmp_path / 'export'}", "--format=stablehlo"]
        variables = os.environ | {"PYTHONPATH": "tests:."}
        return warm.run("-c", COMMAND, *flags, *arguments, env=variables)

    half = run("--height=32")
    assert (half.returncode, half.stderr) == (
        2,
        "kdjax export: error: --height and --width go together: give both or neither\n",
    )
    whole = run("--fold_batch_norm")
    assert whole.returncode == 0, whole.stderr
    assert "student.stablehlo: images of any size" in whole.stdout
    assert "labels agree" in whole.stdout


@pytest.mark.thorough
def test_the_command_calibrates_and_says_what_both_files_score(tmp_path):
    """The run's data set has moved."""
    tiny_run.write_images(tmp_path / "images")
    dataset = sets.prepare("folder", tmp_path / "data", source=tmp_path / "images")
    config = configuration.default()
    config.data.name, config.data.data_dir = "folder", str(tmp_path / "moved")
    Workdir(tmp_path / "run").claim(configuration.read(config))
    classes = len(dataset.class_names)
    info = dataclasses.replace(
        described("tiny"),
        num_classes=classes,
        class_names=dataset.class_names,
        palette=((0, 0, 0),) * classes,
    )
    net = models.create("tiny", num_classes=classes, width=4, rngs=nnx.Rngs(0))
    serialization.save(tmp_path / "run" / "student", info, NNXNetwork.of(net)[1])

    def run(*given):
        flags = [f"--source={tmp_path / 'run'}", f"--output={tmp_path / 'export'}", "--int8"]
        variables = os.environ | {"PYTHONPATH": "tests:."}
        size = ("--height=24", "--width=32")
        return warm.run("-c", COMMAND, *flags, *size, *given, env=variables)

    calibrate = f"--calibrate={tmp_path / 'data'}"
    for given, said in (
        (["--format=tflite"], "--int8 and --calibrate go together: give both or neither"),
        (
            ["--format=stablehlo", calibrate],
            "--int8 is for the format tflite: name it in --format",
        ),
    ):
        refused = run(*given)
        assert (refused.returncode, refused.stderr) == (2, f"kdjax export: error: {said}\n")
    assert not (tmp_path / "export").exists()

    written = run("--format=tflite", calibrate)
    assert written.returncode == 0, written.stderr
    names = ["student.tflite", "student_int8.tflite"]
    said = [line for line in written.stdout.splitlines() if line.startswith("student")]
    assert [line.partition(": ")[0] for line in said] == names * 2
    for line in said[:2]:
        assert "images of 24 x 32" in line
        assert "labels agree with the network's" in line
    for line in said[2:]:
        assert re.search(r"an image of 24 x 32 in .* ms .*; val mIoU \d+\.\d\d %$", line), line
    assert {path.name for path in (tmp_path / "export").iterdir()} == {*names, "export.json"}
