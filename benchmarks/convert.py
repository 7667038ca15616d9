"""Seconds and memory that converting a network's file takes.

    python -m benchmarks.convert --model pspnet_r101 --format pth

Writes random weights under mmsegmentation's names to a file and runs `kdjax convert` on it in a
process of its own. Its memory is the peak of the resident set less what the process held after
its imports, in units of the file's size; the bar is 3.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import flags
from flax import nnx

from kdjax import models
from kdjax.cli import convert
from kdjax.interop import mmseg
from kdjax.models.adapters import traced_rngs

BAR = 3
CLASSES = 19


def write(name, file):
    """Writes random weights to a `.pth` or `.safetensors` file."""
    net = nnx.eval_shape(lambda: models.create(name, num_classes=CLASSES, rngs=traced_rngs(0)))
    rng = np.random.default_rng(0)
    weights = {
        key: rng.standard_normal(mmseg.torch_shape(leaf), np.float32)
        for key, leaf in mmseg.leaves(net).items()
    }
    if file.suffix == ".safetensors":
        import safetensors.numpy

        safetensors.numpy.save_file(weights, file)
    else:
        import torch

        tensors = {key: torch.from_numpy(value) for key, value in weights.items()}
        torch.save({"state_dict": tensors}, file)


def peak():
    """Peak of the resident set so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(name, file, output):
    """Converts; returns seconds and bytes beyond what the imports took."""
    import jax.numpy as jnp
    import safetensors.numpy  # noqa: F401  as what reads files would

    if file.suffix == ".pth":
        import torch  # noqa: F401
    import kdjax.data.preparing.builder  # noqa: F401  names the classes

    jnp.zeros(1).block_until_ready()
    settings = {"source": file, "model": name, "num_classes": CLASSES, "output": output}
    flags.FLAGS(["convert", *(f"--{key}={value}" for key, value in settings.items())])
    before, start = peak(), time.perf_counter()
    convert.main([])
    return time.perf_counter() - start, peak() - before


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="pspnet_r101")
    parser.add_argument("--format", default="pth", choices=("pth", "safetensors"))
    parser.add_argument("--measure", metavar="FOLDER", help="of the file, in the inner process")
    settings = parser.parse_args()
    if settings.measure:
        folder = Path(settings.measure)
        file = folder / f"weights.{settings.format}"
        print(json.dumps(measure(settings.model, file, folder / "net")))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"weights.{settings.format}"
        write(settings.model, file)
        run = subprocess.run(
            [sys.executable, "-m", "benchmarks.convert", *sys.argv[1:], "--measure", folder],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        seconds, memory = json.loads(run.stdout.splitlines()[-1])
        size = file.stat().st_size
    times = memory / size
    print(
        f"{settings.model}, .{settings.format} of {size / 1e6:.0f} MB: {seconds:.1f} s, "
        f"{memory / 1e6:.0f} MB beyond the imports, {times:.1f} times the file"
    )
    if times > BAR:
        sys.exit(f"more than {BAR} times the file")


if __name__ == "__main__":
    main()
