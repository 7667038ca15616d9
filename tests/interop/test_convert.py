"""The command `convert`."""

import json
import os
import pathlib
import resource

import numpy as np
import pytest
import safetensors.numpy
import warm
from made_up_weights import abstract, assert_same, random_weights

from kdjax import interop
from kdjax.models import serialization
from kdjax.models.outputs import IMAGENET

ROOT = pathlib.Path(__file__).resolve().parents[2]


def convert(*arguments):
    return warm.run("-m", "kdjax", "convert", *arguments)


def test_convert_writes_a_network_checkpoint(tmp_path):
    file, output = tmp_path / "net.safetensors", tmp_path / "net"
    weights = random_weights(abstract("pspnet_r18", width=64, auxiliary=False))
    safetensors.numpy.save_file(weights, file)
    arguments = (f"--source={file}", f"--output={output}", "--model=pspnet_r18")
    run = convert(*arguments, "--num_classes=5")
    assert run.returncode == 0, run.stderr
    network, variables, info = serialization.load(output)
    net = network.module(variables)
    assert_same(interop.to_mmseg(net), weights)
    assert (info.name, info.num_classes, info.auxiliary) == ("pspnet_r18", 5, False)
    assert info.source == "mmsegmentation, net.safetensors"
    assert json.loads((output / "network.json").read_text())["channel_order"] == "RGB"
    assert len(info.class_names) == len(set(info.palette)) == 5
    run = convert(
        arguments[0], f"--output={tmp_path / 'other'}", "--model=deeplabv3_r18", "--num_classes=5"
    )
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    start = f"kdjax convert: error: {file}: the weights do not fit this network; missing: "
    assert run.stderr.startswith(start)
    assert "decode_head.aspp_modules." in run.stderr
    assert "; unexpected: decode_head.psp_modules." in run.stderr
    assert not (tmp_path / "other").exists()


def test_convert_writes_a_backbone_alone(tmp_path):
    file, output = tmp_path / "net.safetensors", tmp_path / "net"
    weights = random_weights(abstract("fcn_mbv2", width=64, auxiliary=False))
    weights = {name: x for name, x in weights.items() if name.startswith("backbone.")}
    safetensors.numpy.save_file(weights, file)
    arguments = (f"--source={file}", f"--output={output}", "--model=mbv2")
    run = convert(*arguments)
    assert run.returncode == 0, run.stderr
    assert "mbv2 without class scores is in" in run.stdout
    network, variables, info = serialization.load(output)
    assert_same(interop.to_mmseg(network.module(variables)), weights)
    assert (info.num_classes, info.class_names, info.auxiliary) == (0, (), False)
    run = convert(*arguments, "--num_classes=3")
    assert run.returncode == 2
    assert "mbv2 scores no classes: leave out their number and names" in run.stderr


@pytest.mark.thorough
def test_convert_records_what_the_images_were(tmp_path):
    file = tmp_path / "net.safetensors"
    weights = random_weights(abstract("fcn_hr18s", width=64))
    safetensors.numpy.save_file(weights, file)
    arguments = (f"--source={file}", f"--output={tmp_path / 'net'}", "--model=fcn_hr18s")
    arguments += ("--num_classes=5", "--bgr", "--mean=3,2,1")
    run = convert(*arguments)
    assert run.returncode == 0, run.stderr
    network, variables, info = serialization.load(tmp_path / "net")
    net = network.module(variables)
    assert info.preprocessing == IMAGENET._replace(mean=(3.0, 2.0, 1.0))
    assert info.channel_order == "RGB"
    assert info.source == "mmsegmentation, net.safetensors, blue first there"
    first = weights["backbone.conv1.weight"]
    np.testing.assert_array_equal(interop.to_mmseg(net)["backbone.conv1.weight"], first[:, ::-1])
    run = convert(*arguments, "--std=1,2")
    assert run.returncode == 2
    assert "--std is '1,2'; give three numbers, red first" in run.stderr


def test_convert_on_a_full_disk_leaves_nothing_and_says_so(tmp_path):
    """A limit of the file size makes writing fail like a full disk."""
    file = tmp_path / "net.safetensors"
    safetensors.numpy.save_file(
        random_weights(abstract("segformer_b0", width=64, auxiliary=False)), file
    )
    arguments = (f"--source={file}", "--model=segformer_b0", "--num_classes=5")
    command = ["-m", "kdjax", "convert", *arguments, f"--output={tmp_path / 'net'}"]
    child = warm.Process(command, env=os.environ)
    resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (10_000, 10_000))
    _, errors = child.communicate(timeout=240)
    assert errors == f"kdjax convert: error: cannot write {tmp_path / 'net'}: File too large\n"
    assert child.returncode == 2
    assert not (tmp_path / "net").exists()


def test_convert_reads_a_folder_of_save_pretrained_and_its_class_names(tmp_path):
    folder = tmp_path / "pretrained"
    folder.mkdir()
    safetensors.numpy.save_file(
        random_weights(abstract("segformer_b0", width=64, auxiliary=False)),
        folder / "model.safetensors",
    )
    names = {str(index): name for index, name in enumerate("abcde")}
    (folder / "config.json").write_text(json.dumps({"id2label": names}))
    other = convert(f"--source={folder}", "--model=segformer_linear_b0", f"--output={tmp_path}/net")
    assert other.returncode == 2
    assert other.stderr == (
        f"kdjax convert: error: {folder}: these are the weights of segformer_b0, not of "
        "segformer_linear_b0: give --model segformer_b0\n"
    )
    run = convert(f"--source={folder}/", "--model=segformer_b0", f"--output={tmp_path / 'net'}")
    assert run.returncode == 0, run.stderr
    told = json.loads((tmp_path / "net" / "network.json").read_text())
    assert told["class_names"] == list("abcde")
    assert told["source"] == "mmsegmentation, pretrained"


MISTAKES = [
    ({"class_names": "a,b"}, "--class_names a,b: 2 names, but --num_classes is 3"),
    ({"class_names": "a,b,a"}, "--class_names a,b,a: a name is empty or occurs twice"),
    ({"class_names": "names"}, "--class_names names: a name is empty or occurs twice"),
    ({"mean": "nan,1,2"}, "--mean is 'nan,1,2'; give means of pixels, 0 to 255"),
    ({"mean": "300,1,2"}, "--mean is '300,1,2'; give means of pixels"),
    ({"mean": "1,2"}, "--mean is '1,2'; give three numbers"),
    ({"std": "1,0,1"}, "--std is '1,0,1'; give positive numbers"),
    ({"std": "1,-1,1"}, "--std is '1,-1,1'; give positive numbers"),
    ({"std": "1,inf,1"}, "--std is '1,inf,1'; give positive numbers"),
    ({"std": "nan,1,1"}, "--std is 'nan,1,1'; give positive numbers"),
    ({"std": ""}, "--std is ''; give three numbers"),
    ({"output": "file/net"}, "cannot write file/net: file is a file"),
    ({"output": "mine"}, "mine/parameters exists and is not part of a network checkpoint"),
]
NO_CLASSES = [
    {"CLASSES": 2, "PALETTE": "x"},
    {"classes": ["a", "b"], "palette": [[1, 2, "x"]] * 2},
    {"classes": ["a", "b"], "palette": [[1, 2, 256]] * 2},
    {"classes": ["a", 7], "palette": [[1, 2, 3]] * 2},
    {"dataset_meta": 3},
]
# Some checkpoints have names without colors.
ONLY_NAMES = {"classes": ["a", "b"]}
CLASSES = {"dataset_meta": {"classes": ["a", "b"], "palette": [[1, 2, 3], [4, 5, 6]]}}


def test_what_convert_cannot_do_is_said_before_anything_is_read(tmp_path):
    """Runs in a separate process, because flags of other commands have the same names."""
    (tmp_path / "file").touch()
    (tmp_path / "names").write_text("a\n\nb\n")
    (tmp_path / "mine" / "parameters").mkdir(parents=True)
    code = """
import json, sys
from absl import flags
from absl.testing import flagsaver
from kdjax.cli import convert
from kdjax.utils.errors import UserError
flags.FLAGS.mark_as_parsed()
usual = {"source": "none.pth", "model": "tiny", "num_classes": "3", "output": "net"}
mistakes, metas = json.loads(sys.argv[1])
said = []
for given in mistakes:
    with flagsaver.as_parsed(**usual | given):
        try:
            convert.main([])
        except UserError as error:
            said.append(str(error))
classes = [convert._classes(meta, 2) for meta in metas]
assert convert._classes(metas[1], None)[0] == ("a", "b")
assert convert._classes(metas[1], None, ["x", "y", "z"])[0] == ("x", "y", "z")
assert convert._given_names(["a", " b"], 2) == ["a", "b"]
try:
    convert._classes({}, None)
except UserError as error:
    assert "give --num_classes or --class_names" in str(error)
print(json.dumps([said, classes]))
"""
    given = json.dumps([[mistake for mistake, _ in MISTAKES], [CLASSES, ONLY_NAMES, *NO_CLASSES]])
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    run = warm.run("-c", code, given, cwd=tmp_path, env=variables)
    assert run.returncode == 0, run.stderr
    said, (classes, (names, colors), *numbered) = json.loads(run.stdout)
    for (_, expected), found in zip(MISTAKES, said, strict=True):
        assert expected in found
    assert {path.name for path in tmp_path.iterdir()} == {"file", "mine", "names"}
    assert (names, len(colors)) == (["a", "b"], 2)
    assert classes == [["a", "b"], [[1, 2, 3], [4, 5, 6]]]
    # Invalid names and colors in a checkpoint are ignored.
    assert [names for names, _ in numbered] == [["class 0", "class 1"]] * len(NO_CLASSES)


def test_a_mistake_in_convert_is_one_line(tmp_path):
    run = convert(
        f"--source={tmp_path / 'a.pth'}",
        "--model=pspnet_r18",
        "--num_classes=19",
        f"--output={tmp_path}",
    )
    assert run.returncode == 2
    assert run.stderr == f"kdjax convert: error: {tmp_path / 'a.pth'}: no such file\n"
