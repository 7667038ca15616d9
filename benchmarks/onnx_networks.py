"""Exports networks to ONNX, and compares their class scores with the network's own.

    python -m benchmarks.onnx_networks --output docs/results/onnx/networks.csv
    python -m benchmarks.onnx_networks --table docs/results/onnx/networks.csv

By default, the networks are every head on ResNet-18, every kind of backbone, and the networks of
other projects. They are narrow and have random weights, because the operations do not depend on
depth and width. A network is exported for images of 64 x 96 and, if possible, of any size. ONNX
Runtime runs it on two images, or on one of 97 x 65. The difference is the largest one of all
scores, divided by the largest score. The limit is 1e-4.
"""

import csv
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import nnx

from kdjax import models
from kdjax.deployment import formats
from kdjax.deployment.rewriting import plain, plain_convolutions
from kdjax.models import NNXNetwork
from kdjax.models.architectures import FAMILIES
from kdjax.models.layers import resize
from kdjax.models.network import scores_of
from kdjax.models.outputs import IMAGENET

BAR = 1e-4
CLASSES = 19
SIZES = (formats.Size(64, 96), formats.ANY)
BACKBONES = ("r50", "r18b", "mbv2", "efficientnet_lite0", "hr18s", "mit_b0", "swin_t")
PROJECTS = (
    *("segformer_b0", "segformer_linear_b0", "segformer_b0@nvlabs", "segformer_b0@cirkd"),
    *("pspnet_r18@cirkd", "deeplabv3_r18@cirkdv2", "deeplabv3_mbv2@cirkd"),
    *("pspnet_r18@torchdistiller", "fcn_resnet50", "deeplabv3_resnet50"),
)
NETWORKS = (
    *(f"{head}_r18" for head in FAMILIES),
    *(f"fpn_light_{backbone}" for backbone in BACKBONES),
    *("fcn_hr18s", *PROJECTS),
)

NAMES = flags.DEFINE_list("networks", list(NETWORKS), "The networks.")
WIDTH = flags.DEFINE_integer("width", 16, "Width of the networks.", 2)
OUTPUT = flags.DEFINE_string("output", None, "A CSV file to write.")
TABLE = flags.DEFINE_string("table", None, "A CSV file to print as a table.")


def scores_function(name):
    """Returns a function from 8-bit images to a network's class scores, in plain operations."""
    net = models.create(
        name, num_classes=CLASSES, width=WIDTH.value, auxiliary=False, rngs=nnx.Rngs(0)
    )
    network, variables = NNXNetwork.of(net)
    network = plain_convolutions(network)

    def scores(images):
        output, _ = network.apply(variables, IMAGENET(images), train=False, key=None)
        return resize(scores_of(output).astype(jnp.float32), images.shape[1:3])

    return plain(scores)


def compared(scores, size, shape):
    """Returns the largest difference of the scores, or the error of the conversion."""
    images = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    expected = np.asarray(jax.jit(scores)(images))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "scores.onnx"
        try:
            formats.write_onnx(scores, size, path)
            found = formats.read_onnx(path)(images)
        # Any error of ONNX Runtime is the result: the file cannot be run.
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            return reason.removeprefix("onnx: ")
    return float(np.max(np.abs(found - expected)) / np.max(np.abs(expected)))


def row(name):
    scores = scores_function(name)
    fixed = compared(scores, SIZES[0], (2, 64, 96))
    free = "computes with the size of its images"
    if formats.takes_any_size(scores):
        free = compared(scores, SIZES[1], (1, 97, 65))
    return {"network": name, "fixed size": fixed, "any size": free}


def said(value):
    """Returns a cell of the table."""
    try:
        return f"{float(value):.1e}" + ("" if float(value) <= BAR else ", more than the bar")
    except ValueError:
        return f"no: {value}"


def main(argv):
    del argv
    if TABLE.value:
        with open(TABLE.value) as file:
            print("| network | 64 x 96 | any size |\n| --- | --- | --- |")
            for line in csv.DictReader(file):
                cells = [said(line[key]) for key in ("fixed size", "any size")]
                print(f"| `{line['network']}` | {' | '.join(cells)} |")
        return
    rows = []
    for name in NAMES.value:
        rows.append(row(name))
        print(*rows[-1].values(), sep="; ", flush=True)
        if OUTPUT.value:
            with open(OUTPUT.value, "w", newline="") as file:
                writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)


if __name__ == "__main__":
    app.run(main)
