"""A training of seconds, for what happens to whole processes; its config and its command.

python tests/tiny_run.py --config tests/tiny_run.py --config.data.data_dir DATA --workdir DIR
"""

import faulthandler
import itertools
import json
import os
import pathlib
import re
import runpy
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from kdjax import config as configuration
from kdjax.models import NETWORKS

if TYPE_CHECKING:
    import warm

ROOT = pathlib.Path(__file__).resolve().parent.parent
STEPS = 10


def get_config() -> Any:
    """Returns the config: class statistics, a moving average, two evaluations."""
    config = configuration.default()
    config.steps = STEPS
    config.log_every = 1
    config.eval_every = 5
    config.checkpoint_every = 2
    config.data.name = "folder"
    config.data.batch_size = 8
    config.data.eval_batch_size = 8
    config.data.crop_size = (16, 16)
    config.student.update(configuration.network("tiny", width=4))
    config.student.auxiliary = False
    config.optimizer.ema_decay = 0.9
    with config.unlocked():
        config.terms = ConfigDict({"augmented": configuration.term("isda_cross_entropy")})
    return config


def write_images(source: pathlib.Path) -> None:
    """Writes a few images of 24 x 32 pixels and their labels, as `kdjax prepare folder` takes."""
    generator = np.random.default_rng(0)
    for split, count in {"train": 9, "val": 3, "test": 3}.items():
        for kind in ("images", "labels"):
            (source / kind / split).mkdir(parents=True)
        for index in range(count):
            label = np.zeros((24, 32), np.uint8)
            label[:, 16:] = 1 + index % 2
            label[0] = 255
            image = np.stack([label * 60] * 3, -1) + generator.integers(0, 60, (24, 32, 3))
            name = f"{'b' if index else 'a'}{index}.png"
            Image.fromarray(image.astype(np.uint8)).save(source / "images" / split / name)
            Image.fromarray(label).save(source / "labels" / split / name)


def environment(*, devices: int, pause: float, clock_jump: float = 0.0) -> dict[str, str]:
    """The variables that a process of the training needs; `start` says what the arguments mean."""
    return {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests"))),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TINY_PAUSE": str(pause),
        "TINY_CLOCK_JUMP": str(clock_jump),
    }


def free_port() -> int:
    """Returns a port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def start(
    data: pathlib.Path,
    workdir: pathlib.Path,
    *arguments: str,
    devices: int = 1,
    pause: float = 0.0,
    clock_jump: float = 0.0,
) -> "warm.Process":
    """Starts the training.

    Args:
      data: where the images are prepared.
      workdir: of the run.
      *arguments: further flags.
      devices: of the process.
      pause: seconds between two batches, so that one can come in between.
      clock_jump: seconds by which the clock jumps forward during a save.
    """
    # Not of use to the training itself.
    import warm

    command = [__file__, "--config", __file__, "--workdir", workdir]
    return warm.Process(
        [*command, "--config.data.data_dir", data, *arguments],
        env=os.environ | environment(devices=devices, pause=pause, clock_jump=clock_jump),
    )


def finish(children: list["warm.Process"]) -> list[tuple[int, str, str]]:
    """Returns the exit status, the output and the errors of each."""
    ended = [child.communicate(timeout=240) for child in children]
    return [
        # Orbax counts the seconds that a busy machine's disk takes.
        (child.returncode, output, re.sub(r"W.*Waiting for previous save .*\n", "", errors))
        for child, (output, errors) in zip(children, ended, strict=True)
    ]


def wait_for_step(workdir: pathlib.Path, step: int, children: list["warm.Process"]) -> None:
    """Returns when a line of the log says that a step is done."""
    metrics = workdir / "metrics.jsonl"
    while not (metrics.exists() and f'"step": {step},' in metrics.read_text()):
        assert all(child.poll() is None for child in children), finish(children)
        time.sleep(0.1)


def records(workdir: pathlib.Path) -> tuple[dict[tuple[str, int], float], Any]:
    """Values of every step by name, without times and costs, and the final confusions by split."""
    found = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        step = record.pop("step")
        for key, value in record.items():
            if not key.endswith(("_second", "seconds", "input_wait", "_flops", "_bytes")):
                found[key, step] = value
    return found, json.loads((workdir / "result.json").read_text())["scores"]


def assert_same(workdir: pathlib.Path, expected: tuple[dict[tuple[str, int], float], Any]) -> None:
    """Compares what `records` finds with what it found of another run."""
    found, scores = records(workdir)
    assert found.keys() == expected[0].keys()
    for key, value in expected[0].items():
        np.testing.assert_allclose(found[key], value, rtol=1e-5, err_msg=str(key))
    assert scores == expected[1]


def _let_the_clock_jump(seconds: float) -> None:
    """Lets `time.time` jump during the third save from now on."""
    import orbax.checkpoint as ocp

    save, clock, saves = ocp.CheckpointManager.save, time.time, itertools.count(1)

    def save_and_jump(self: Any, *arguments: Any, **options: Any) -> Any:
        found = save(self, *arguments, **options)
        if next(saves) == 3:
            time.time = lambda: clock() + seconds
        return found

    ocp.CheckpointManager.save = save_and_jump  # type: ignore[method-assign]


def _main() -> None:
    # A process that hangs prints its stacks on this signal.
    faulthandler.register(signal.SIGUSR1)
    if jump := float(os.environ["TINY_CLOCK_JUMP"]):
        _let_the_clock_jump(jump)

    from kdjax.data.run_data import RunData
    from kdjax.experiment import train as runs

    NETWORKS["tiny"] = "tiny:create"
    batches = RunData.train_batches

    def slowly(self: RunData, **options: Any) -> Any:
        for batch in batches(self, **options):
            time.sleep(float(os.environ["TINY_PAUSE"]))
            yield batch

    RunData.train_batches = slowly  # type: ignore[method-assign]
    # Drawing it takes a fifth of the time, and nobody looks at it.
    runs._report = lambda *arguments: None
    # The decoded examples stay where `train_batches` hands them out.
    sys.argv.append("--config.data.cache=none")
    sys.argv.insert(1, "train")
    runpy.run_module("kdjax", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
