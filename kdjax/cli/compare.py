"""Compares methods: trains a teacher once, then the plain student and each method over its seeds.

python -m kdjax compare --config configs/quickstart.py --workdir runs/quickstart [--seeds 0,1,2]

The command prints a table. The workdir then contains report.html and every student. The same
command continues what was stopped, and adds methods and seeds.
"""

from absl import flags

from kdjax.cli.flags import ConfigFlag
from kdjax.comparison.compare import compare
from kdjax.utils import environment, processes
from kdjax.utils.errors import UserError
from kdjax.utils.log import logger

_CONFIG = ConfigFlag()
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Directory of the runs, created if it is missing. Finished runs in it are kept.",
    required=True,
)
_SEEDS = flags.DEFINE_list("seeds", None, "Seeds, as 0,1,2; by default those of the config.")
_PARALLEL = flags.DEFINE_integer(
    "parallel", 1, "Runs at once, which share the accelerators or the cores.", 1
)
_PROCESSES = processes.define_flags()


def main(argv: list[str]) -> None:
    """Trains the runs that are not finished, prints the tables, and writes the report."""
    del argv
    config = _CONFIG.read()
    try:
        seeds = None if _SEEDS.value is None else [int(value) for value in _SEEDS.value]
    except ValueError:
        given = ",".join(_SEEDS.value or ())
        raise UserError(f"--seeds is {given}; give whole numbers, as 0,1,2") from None
    processes.join(_PROCESSES)
    environment.set_up_jax()
    logger.info(compare(config, _WORKDIR.value, parallel=_PARALLEL.value, seeds=seeds))
