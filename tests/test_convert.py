"""The command that makes network checkpoints of weights from elsewhere."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import safetensors.numpy
from made_up_weights import abstract, assert_same, random_weights

from kdjax import interop
from kdjax.models import saved
from kdjax.models.preprocessing import IMAGENET

ROOT = pathlib.Path(__file__).resolve().parent.parent


def convert(*arguments):
    command = [sys.executable, "-m", "kdjax.convert", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_convert_writes_a_network_checkpoint(tmp_path):
    file, output = tmp_path / "net.safetensors", tmp_path / "net"
    weights = random_weights(abstract("pspnet_r18", width=64, auxiliary=False))
    safetensors.numpy.save_file(weights, file)
    arguments = (f"--source={file}", f"--output={output}", "--model=pspnet_r18")
    run = convert(*arguments, "--num_classes=5")
    assert run.returncode == 0, run.stderr
    net, info = saved.load(output)
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
    start = f"kdjax.convert: error: {file}: the weights are not this network's; missing: "
    assert run.stderr.startswith(start)
    assert "decode_head.aspp_modules." in run.stderr
    assert "; unexpected: decode_head.psp_modules." in run.stderr
    assert not (tmp_path / "other").exists()


def test_convert_records_what_the_images_were(tmp_path):
    file = tmp_path / "net.safetensors"
    weights = random_weights(abstract("fcn_hr18s", width=64))
    safetensors.numpy.save_file(weights, file)
    arguments = (f"--source={file}", f"--output={tmp_path / 'net'}", "--model=fcn_hr18s")
    arguments += ("--num_classes=5", "--bgr", "--mean=3,2,1")
    run = convert(*arguments)
    assert run.returncode == 0, run.stderr
    net, info = saved.load(tmp_path / "net")
    assert info.preprocessing == IMAGENET._replace(mean=(3.0, 2.0, 1.0))
    assert info.channel_order == "RGB"
    assert info.source == "mmsegmentation, net.safetensors, blue first there"
    first = weights["backbone.conv1.weight"]
    np.testing.assert_array_equal(interop.to_mmseg(net)["backbone.conv1.weight"], first[:, ::-1])
    run = convert(*arguments, "--std=1,2")
    assert run.returncode == 2
    assert "--std is 1,2; it takes three numbers, red first" in run.stderr


def test_a_mistake_in_convert_is_one_line(tmp_path):
    run = convert(
        f"--source={tmp_path / 'a.pth'}",
        "--model=pspnet_r18",
        "--num_classes=19",
        f"--output={tmp_path}",
    )
    assert run.returncode == 2
    assert run.stderr == f"kdjax.convert: error: {tmp_path / 'a.pth'}: no such file\n"
