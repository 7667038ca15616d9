"""Trains one run of a comparison in its own process; started by `kdjax compare --parallel`."""

import os
import sys

from kdjax.cli import command
from kdjax.comparison.parallel import CORES, from_json, train_one
from kdjax.utils import environment


def main(argv: list[str]) -> None:
    """Reads a run from standard input and trains it on the cores of the environment."""
    del argv
    os.sched_setaffinity(0, map(int, os.environ[CORES].split(",")))
    environment.set_up_jax()
    train_one(from_json(sys.stdin.read()))


if __name__ == "__main__":
    sys.argv[0] = "kdjax compare"
    command.run(main, resumes=True)
