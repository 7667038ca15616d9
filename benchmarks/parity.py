"""Compares every network with mmsegmentation's, on the same random weights and images.

    python -m benchmarks.parity --mmseg-python PATH                  all
    python -m benchmarks.parity --mmseg-python PATH --only pspnet_r18,fcn_hr18s

PATH is the Python of an environment with mmsegmentation 1.2 and its PyTorch, without kdjax. Each
network is built from mmsegmentation's own config, with random weights and running statistics, and
runs on images of 65 x 97 and 129 x 257. `interop.from_mmseg` converts the weights, and `to_mmseg`
must return every bit of them.

Prints a Markdown table of the largest absolute difference over both sizes, in units of the map's
largest magnitude. "rounding" is the difference between PyTorch's float32 and float64 logits. Exits
with 1 if a difference is above 1e-4 or the numbers of parameters differ.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kdjax import interop, models
from kdjax.models.adapters import traced_rngs

BAR = 1e-4
D8 = "80k_cityscapes-512x1024.py"
CONFIGS = {
    **{
        f"{head}_r{depth}": f"{head}/{head}_r{depth}-d8_4xb2-{D8}"
        for depth in ("18", "50", "101", "18b", "50b", "101b")
        for head in ("pspnet", "deeplabv3", "fcn", "deeplabv3plus")
    },
    **{
        f"{head}_mbv2": f"mobilenet_v2/mobilenet-v2-d8_{head}_4xb2-{D8}"
        for head in ("pspnet", "deeplabv3", "fcn", "deeplabv3plus")
    },
    **{f"upernet_r{depth}": f"upernet/upernet_r{depth}_4xb2-{D8}" for depth in (18, 50, 101)},
    **{f"fcn_hr{plan}": f"hrnet/fcn_hr{plan}_4xb2-{D8}" for plan in ("18s", "18", "48")},
    **{
        f"segformer_{size}": f"segformer/segformer_mit-{size}_8xb2-160k_ade20k-{side}x{side}.py"
        for size, side in zip(
            ("b0", "b1", "b2", "b3", "b4", "b5"), (512, 512, 512, 512, 512, 640), strict=True
        )
    },
    "upernet_swin_t": (
        "swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py"
    ),
}


class Peer:
    """A process in the other environment that builds and runs mmsegmentation's networks."""

    def __init__(self, python):
        script = Path(__file__).with_name("parity_mmseg.py")
        # This environment's Python path must not reach the other one.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        self._process = subprocess.Popen(
            [python, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.versions = self._answer()

    def run(self, config, file):
        """Writes weights, images and outputs to `file`; returns the number of parameters."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{config} {file}\n")
        self._process.stdin.flush()
        return int(self._answer())

    def _answer(self):
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            sys.exit("the process with mmsegmentation ended; what it said stands above")
        return line


def outputs(net, images):
    """Returns all maps of a network, op by op, because compiling a whole network takes minutes."""
    output = net(jnp.asarray(images))
    maps = {"logits": output.logits, "aux_logits": output.aux_logits, **output.features}
    return {name: np.asarray(value) for name, value in maps.items() if value is not None}


def difference(found, expected):
    return float(np.max(np.abs(found - expected)) / np.max(np.abs(expected)))


def compare(name, arrays):
    """Returns the number of parameters, the difference of each map, and PyTorch's own rounding."""
    weights = {k.removeprefix("weights/"): v for k, v in arrays.items() if k.startswith("weights/")}
    classes = len(weights["decode_head.conv_seg.bias"])
    net = nnx.eval_shape(lambda: models.create(name, num_classes=classes, rngs=traced_rngs(0)))
    interop.from_mmseg(net, weights)
    again = interop.to_mmseg(net)
    assert again.keys() == weights.keys()
    for key, value in weights.items():
        np.testing.assert_array_equal(again[key], value, err_msg=key)

    differences, rounding = {}, 0.0
    for key, images in arrays.items():
        if not key.startswith("images/"):
            continue
        prefix = key.replace("images/", "outputs/") + "/"
        found = outputs(net, images)
        expected = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
        assert found.keys() == expected.keys(), (found.keys(), expected.keys())
        for map_name, value in expected.items():
            assert found[map_name].shape == value.shape, (map_name, value.shape)
            differences[map_name] = max(
                differences.get(map_name, 0.0), difference(found[map_name], value)
            )
        exact = arrays[key.replace("images", "exact")]
        rounding = max(rounding, difference(expected["logits"], exact))
    return (
        sum(leaf.size for leaf in jax.tree.leaves(nnx.state(net, nnx.Param))),
        differences,
        rounding,
    )


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mmseg-python", required=True)
    parser.add_argument("--only", default="", help="names of networks, with commas between")
    flags = parser.parse_args()
    wanted = flags.only.split(",") if flags.only else list(CONFIGS)

    peer = Peer(flags.mmseg_python)
    print(
        f"Python {platform.python_version()}, JAX {jax.__version__}, Flax {flax.__version__}; "
        f"{peer.versions}; float32 on the CPU.\n"
    )
    print(
        "| network | config | parameters | logits | aux | features, worst | its name | rounding |"
    )
    print("| --- | --- | ---: | ---: | ---: | ---: | --- | ---: |")
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        for name in wanted:
            file = Path(folder) / "peer.npz"
            theirs = peer.run(CONFIGS[name], file)
            with np.load(file) as arrays:
                ours, differences, rounding = compare(name, dict(arrays))
            if ours != theirs or not max(differences.values()) <= BAR:
                failed.append(name)
            logits = f"{differences.pop('logits'):.1e}"
            auxiliary = (
                f"{differences.pop('aux_logits'):.1e}" if "aux_logits" in differences else ""
            )
            worst = max(differences, key=lambda key: differences[key])
            count = f"{ours:,}" if ours == theirs else f"{ours:,} instead of {theirs:,}"
            config = CONFIGS[name].rpartition("/")[2].removesuffix(".py")
            features = f"{differences[worst]:.1e}"
            row = [f"`{name}`", f"`{config}`", count, logits, auxiliary, features, worst]
            print("|", " | ".join([*row, f"{rounding:.1e}"]), "|", flush=True)
    if failed:
        sys.exit(f"beyond {BAR} or of another size: {', '.join(failed)}")


if __name__ == "__main__":
    main()
