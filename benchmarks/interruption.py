"""Kills a small training at random moments, and compares what it comes to with one left alone.

python -m benchmarks.interruption --kills 30 --terms 10

Half of the kill -9 and SIGTERM come at a random time after a random number of the process's steps,
every fourth then waits until a checkpoint is being written, and every fourth comes between the
process's start and its first step. Then the same command is given again. A run that is finished is
compared, and another begins. The network is that of the tests.
"""

import argparse
import json
import pathlib
import random
import signal
import sys
import tempfile
import time

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))

import tiny_run
import warm

from kdjax.data import sets
from kdjax.models import NETWORKS, saved

NETWORKS["tiny"] = "tiny:create"

STEPS = 300
CHECKPOINT_EVERY = 5
# Between two batches, so that there are moments to come in between.
PAUSE = 0.02  # seconds
# At most, before an interruption.
MORE_STEPS = 30
MOMENTS = ("stepping", "saving", "stepping", "starting")


def main() -> None:
    """Prints what came of every interruption, and ends with an error where students differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--terms", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = random.Random(options.seed)
    signals = [signal.SIGKILL] * options.kills + [signal.SIGTERM] * options.terms
    generator.shuffle(signals)
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        tiny_run.write_images(root / "source")
        sets.prepare("folder", root / "data", source=root / "source")
        expected = _student(_finish(root, root / "whole"))
        workdir, runs, lost = root / "run1", 1, []
        for number, kind in enumerate(signals, start=1):
            moment = MOMENTS[number % len(MOMENTS)]
            status, steps, kept = _interrupt(root, workdir, kind, moment, generator)
            # One that came after the end was none, and is made again with the next run.
            while status == 0:
                _compare(workdir, expected)
                runs += 1
                workdir = root / f"run{runs}"
                status, steps, kept = _interrupt(root, workdir, kind, moment, generator)
            lost.append(steps - kept)
            print(
                f"{number:3} {kind.name} while {moment}: status {status}, {steps} steps logged, "
                f"checkpoint of step {kept}",
                flush=True,
            )
        _compare(_finish(root, workdir), expected)
    print(
        f"{len(signals)} interruptions in {runs} runs of {STEPS} steps, a checkpoint every "
        f"{CHECKPOINT_EVERY}: at most {max(lost)} logged steps done again; all students equal the "
        "one left alone, bit for bit"
    )


def _start(root: pathlib.Path, workdir: pathlib.Path) -> warm.Process:
    flags = (
        f"--config.steps={STEPS}",
        "--config.eval_every=50",
        f"--config.checkpoint_every={CHECKPOINT_EVERY}",
    )
    return tiny_run.start(root / "data", workdir, *flags, pause=PAUSE)


def _finish(root: pathlib.Path, workdir: pathlib.Path) -> pathlib.Path:
    child = _start(root, workdir)
    _, errors = child.communicate(timeout=600)
    if child.returncode != 0:
        sys.exit(f"a start that was left alone failed:\n{errors}")
    return workdir


def _interrupt(
    root: pathlib.Path,
    workdir: pathlib.Path,
    kind: signal.Signals,
    moment: str,
    generator: random.Random,
) -> tuple[int, int, int]:
    """Returns the exit status, the last step in the log and that of the newest checkpoint."""
    # A start cuts the log back to the newest checkpoint; only a further line is a step.
    before = (0, _logged(workdir), _newest(workdir))
    child = _start(root, workdir)
    if moment == "starting":
        time.sleep(generator.uniform(0, 10))
    else:
        while child.poll() is None and _logged(workdir) in before:
            time.sleep(0.01)
        target = _newest(workdir) + generator.randint(1, MORE_STEPS)
        while child.poll() is None and _logged(workdir) < target:
            time.sleep(0.01)
        if moment == "stepping":
            time.sleep(generator.uniform(0, 5 * PAUSE))
        while moment == "saving" and child.poll() is None and not _saving(workdir):
            time.sleep(0.001)
    child.send_signal(kind)
    _, errors = child.communicate(timeout=600)
    # Before its first step, SIGTERM ends a process as it ends any; a run may also be over.
    if child.returncode not in (0, 75, -kind):
        sys.exit(f"status {child.returncode} after {kind.name}:\n{errors}")
    return child.returncode, _logged(workdir), _newest(workdir)


def _logged(workdir: pathlib.Path) -> int:
    metrics = workdir / "metrics.jsonl"
    lines = metrics.read_text().split("\n")[:-1] if metrics.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def _newest(workdir: pathlib.Path) -> int:
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    return max((int(name) for name in names if name.isdecimal()), default=0)


def _saving(workdir: pathlib.Path) -> bool:
    return any((workdir / "checkpoints").glob("*tmp*"))


def _student(workdir: pathlib.Path) -> list[np.ndarray]:
    _, variables, _ = saved.load(workdir)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(variables)]


def _compare(workdir: pathlib.Path, expected: list[np.ndarray]) -> None:
    found = _student(workdir)
    if not all(map(np.array_equal, found, expected)):
        sys.exit(f"{workdir.name} came to another student than the run that was left alone")


if __name__ == "__main__":
    main()
