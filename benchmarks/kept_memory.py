"""What a step on the CPU costs while freed memory goes back to the system, and while it is kept.

    OMP_NUM_THREADS=1 taskset -c 1 python -m benchmarks.kept_memory

kdjax's commands keep it (`kdjax.utils.environment.set_up_jax`). Processes of the two kinds take
turns, each with steps of the CPU's work of `benchmarks.train_step`, plain and by CWD. Ratios are
those of one round.
"""

import dataclasses
import json
import os
import resource
import subprocess
import sys
import time

import numpy as np
from absl import flags

from benchmarks import rounds
from benchmarks.alone import resident_peak
from benchmarks.kdjax_side import Side
from benchmarks.work import CPU, Work
from kdjax.cli import command
from kdjax.recipes import terms_of
from kdjax.utils import environment

ROUNDS = flags.DEFINE_integer("rounds", 5, "Processes of each kind, for each method.", 1)
STEPS = flags.DEFINE_integer("steps", 30, "Steps that a process is timed for.", 1)
ONE = flags.DEFINE_string("one", None, "What one process measures: Work.to_json().")
METHODS = ("plain", "cwd")
# Of the system's library for memory: with any such variable kdjax leaves it as it is.
GIVEN_BACK = {"MALLOC_PERTURB_": "0"}
FIGURES = {
    "ms a step": "{:.1f}",
    "processor ms": "{:.1f}",
    "of these in the system": "{:.1f}",
    "new pages": "{:.0f}",
    "peak of the process, MiB": "{:.0f}",
}


def main(argv: list[str]) -> None:
    del argv
    if ONE.value:
        print(json.dumps(measure(Work.from_json(ONE.value))))
        return
    print("| method | a step's | given back | kept | kept / given back |")
    print("| --- | --- | ---: | ---: | ---: |")
    for method in METHODS:
        terms = {} if method == "plain" else terms_of(method)
        work = dataclasses.replace(CPU, terms=terms)
        pairs = [(process(work, GIVEN_BACK), process(work, {})) for _ in range(ROUNDS.value)]
        for name, form in FIGURES.items():
            before, after = (
                np.array([one[name] for one in side]) for side in zip(*pairs, strict=True)
            )
            ratio = after / np.maximum(before, 1e-9)
            cells = [form.format(np.median(before)), form.format(np.median(after))]
            low, middle, high = np.percentile(ratio, [25, 50, 75])
            cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
            print(f"| {method} | {name} | {' | '.join(cells)} |", flush=True)
    print(f"\n{rounds.machine()}")


def process(work: Work, variables: dict[str, str]) -> dict[str, float]:
    """What a process of its own measures.

    Raises:
      CalledProcessError: where it fails; it has said why.
    """
    others = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.kept_memory",
            "--one",
            work.to_json(),
            "--steps",
            str(STEPS.value),
        ],
        env=others | variables,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(run.stdout.splitlines()[-1])


def measure(work: Work) -> dict[str, float]:
    """The figures of this process, a step's each but the peak."""
    environment.set_up_jax()
    side, batch = Side(work), work.batch(0)
    for _ in range(3):
        side.step(batch)
    side.wait()
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    for _ in range(STEPS.value):
        side.step(batch)
    side.wait()
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF)
    system = after.ru_stime - before.ru_stime
    spent = (
        1e3 * seconds,
        1e3 * (after.ru_utime - before.ru_utime + system),
        1e3 * system,
        after.ru_minflt - before.ru_minflt,
    )
    figures = [*(value / STEPS.value for value in spent), resident_peak() / 2**20]
    return dict(zip(FIGURES, figures, strict=True))


if __name__ == "__main__":
    command.run(main)
