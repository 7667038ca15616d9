"""Compares a network's forward pass, and `kdjax predict` on a folder, with PyTorch on a CPU.

    OMP_NUM_THREADS=1 taskset -c 1 python -m benchmarks.inference

EfficientNet-Lite0 and Lite2 under a light feature pyramid have the same random weights on both
sides. Their forward passes, in float32 without gradients, take turns. Then each side labels a
folder of photos in a new process, with few photos and with more: the difference is the cost of a
photo, and the rest that of the start. Both write label maps and overlays. The labels must agree.
Times are processor seconds, and ratios those of one round.
"""

import functools
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx
from PIL import Image

from benchmarks.rounds import machine, spread
from benchmarks.torch.lite import LightFPN
from benchmarks.torch.trainer import channels_last, normalize, settle
from benchmarks.work import Work
from kdjax import interop, models
from kdjax.cli import command
from kdjax.models import NNXNetwork, scores_of
from kdjax.models.outputs import IMAGENET
from kdjax.models.serialization import NetworkInfo, save
from kdjax.reporting.pictures import full_palette
from kdjax.utils import environment

ROOT = pathlib.Path(__file__).resolve().parents[1]
NETWORKS, CLASSES = ("lite0", "lite2"), 11
SIZES, BATCH_SIZE, ROUNDS = ((160, 208), (384, 384)), 8, 9  # of the forward passes
PHOTO, COUNTS, FOLDERS = (360, 480), (8, 72), 3  # size of a photo; photos and rounds of folders
# The share of pixels that may differ, where two classes have nearly the same score.
DIFFERENT = 1e-3
SCORES = 1e-4  # the largest difference of scores, relative to the largest score


def main(argv: list[str]) -> None:
    del argv
    environment.set_up_jax()
    print("| network and images | kdjax / PyTorch | kdjax / compiled PyTorch |")
    print("| --- | ---: | ---: |")
    for size in NETWORKS:
        for image in SIZES:
            print(forward(size, image), flush=True)
    print(f"\n{folders()}\n\n{machine()} PyTorch {torch.__version__}.")


def same_network(size: str) -> tuple[Any, LightFPN]:
    """Returns a network of kdjax, and the same in PyTorch, with settled running statistics."""
    rngs = nnx.Rngs(0)
    name = f"fpn_light_efficientnet_{size}"
    net = models.create(name, num_classes=CLASSES, width=64, auxiliary=False, rngs=rngs)
    torch.manual_seed(0)
    theirs = LightFPN(size, CLASSES)
    settle(theirs, [Work(crop=(160, 208), classes=CLASSES).batch(seed) for seed in range(2)])
    weights = {name: value.numpy() for name, value in theirs.state_dict().items()}
    interop.from_mmseg(net, weights)
    return net, channels_last(theirs)


def forward(
    size: str, image: tuple[int, int], batch_size: int = BATCH_SIZE, *, compiled: bool = True
) -> str:
    """Times the forward passes of one network in turn. Returns a row of the table."""
    net, theirs = same_network(size)
    network, variables = NNXNetwork.of(net)
    images = Work(crop=image, batch_size=batch_size, classes=CLASSES).batch(3)["image"]

    @jax.jit
    def scores(variables: Any, images: Any) -> Any:
        return scores_of(network.apply(variables, IMAGENET(images), train=False, key=None)[0])

    def in_torch(network: Any) -> np.ndarray:
        given = normalize(torch.from_numpy(images), torch.float32)
        return network(given)["logits"].numpy().transpose(0, 2, 3, 1)

    calls: dict[str, Callable[[], Any]] = {
        "kdjax": lambda: np.asarray(scores(variables, images)),
        "PyTorch": functools.partial(in_torch, theirs),
    }
    if compiled:
        # Without the memory of other sizes, for which PyTorch would make kernels of any size.
        torch.compiler.reset()
        calls["compiled"] = functools.partial(in_torch, torch.compile(theirs, dynamic=False))
    with torch.inference_mode():
        expected, *others = (call() for call in calls.values())
        for other in others:
            difference = np.abs(other - expected).max() / np.abs(expected).max()
            assert difference <= SCORES, f"the sides do not compute the same: {difference:.1e}"
        times = {name: [] for name in calls}
        for _ in range(ROUNDS):
            for name, call in calls.items():
                started = time.process_time()
                call()
                times[name].append(time.process_time() - started)
    ours = np.array(times.pop("kdjax"))
    cells = [spread(np.array(found) / ours, "{:.2f}") for found in times.values()]
    cells += ["–"] * (2 - len(cells))
    return f"| {size}, {len(images)} x {image[0]} x {image[1]} | {' | '.join(cells)} |"


def folders() -> str:
    """Labels folders of photos, each in a new process. Returns a table."""
    few, many = COUNTS
    found: dict[str, list[tuple[float, float]]] = {"kdjax": [], "PyTorch": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        commands = write_networks(folder)
        for count in (few, many):
            write_photos(folder / str(count), count, PHOTO)
        for round_number in range(FOLDERS):
            for name, words in commands.items():
                seconds = []
                for count in (few, many):
                    output = folder / f"{name}_{count}_{round_number}"
                    seconds.append(run([*words(folder / str(count), output)]))
                cost = (seconds[1] - seconds[0]) / (many - few)
                found[name].append((cost, seconds[0] - few * cost))
        check_labels(*(folder / f"{name}_{few}_0" for name in commands))
    ours, theirs = (np.array(found[name]) for name in ("kdjax", "PyTorch"))
    lines = [
        f"| predict, photos of {PHOTO[0]} x {PHOTO[1]} | kdjax | PyTorch | ratio of times |",
        "| --- | ---: | ---: | ---: |",
    ]
    rows = ((0, "processor ms a photo", 1e3), (1, "processor seconds to start", 1))
    for column, text, factor in rows:
        cells = [spread(factor * side[:, column], "{:.1f}") for side in (ours, theirs)]
        cells.append(spread(ours[:, column] / theirs[:, column], "{:.2f}"))
        lines.append(f"| {text} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_networks(folder: pathlib.Path) -> dict[str, Callable[..., list[str]]]:
    """Writes Lite0 for both sides, and returns the commands that label photos with it."""
    net, theirs = same_network("lite0")
    _, variables = NNXNetwork.of(net)
    names = tuple(f"class{number}" for number in range(CLASSES))
    palette = tuple((20 * number, 255 - 20 * number, 128) for number in range(CLASSES))
    name = "fpn_light_efficientnet_lite0"
    save(folder / "kdjax", NetworkInfo(name, CLASSES, 64, False, names, palette), variables)
    content = {
        "size": "lite0",
        "state": theirs.state_dict(),
        "palette": full_palette(np.array(palette, np.uint8)).tolist(),
    }
    torch.save(content, folder / "network.pt")
    python = [sys.executable, "-m"]
    return {
        "kdjax": lambda photos, output: [
            *(*python, "kdjax", "predict", "--workdir", str(folder / "kdjax")),
            *("--images", str(photos), "--output", str(output)),
        ],
        "PyTorch": lambda photos, output: [
            *(*python, "benchmarks.torch.predict", str(folder / "network.pt")),
            *(str(photos), str(output), str(torch.get_num_threads())),
        ],
    }


def write_photos(folder: pathlib.Path, count: int, size: tuple[int, int]) -> None:
    """Writes JPEG files."""
    folder.mkdir()
    images = Work(crop=size, batch_size=count, classes=CLASSES).batch(0)["image"]
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:03}.jpg", quality=90)


def run(words: Sequence[str]) -> float:
    """Runs a command without programs that were compiled before. Returns its processor seconds."""
    variables = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, cwd=ROOT, env=variables, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def check_labels(*outputs: pathlib.Path) -> None:
    """Checks that label maps agree.

    Raises:
      AssertionError: if more than `DIFFERENT` of the pixels differ.
    """
    one, other = (
        np.stack([np.array(Image.open(path)) for path in sorted((output / "labels").iterdir())])
        for output in outputs
    )
    different = float(np.mean(one != other))
    assert different <= DIFFERENT, f"{different:.1%} of the labels differ"


if __name__ == "__main__":
    command.run(main)
