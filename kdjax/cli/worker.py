"""Trains one run of a comparison in a process of its own; `kdjax compare --parallel` starts it."""

import os
import sys

from kdjax.cli import command
from kdjax.comparison.scheduler import CORES, Job
from kdjax.utils import environment


def main(argv: list[str]) -> None:
    """Reads the job from standard input and runs it on the cores that the environment names."""
    del argv
    os.sched_setaffinity(0, map(int, os.environ[CORES].split(",")))
    environment.set_up_jax()
    Job.from_json(sys.stdin.read()).run()


if __name__ == "__main__":
    sys.argv[0] = "kdjax compare"
    command.run(main, resumes=True)
