"""Compares methods: trains a teacher once, then the plain student and each method over its seeds.

python -m kdjax compare --config configs/quickstart.py --workdir runs/quickstart [--seeds 0,1,2]

It prints a table; the workdir then holds report.html and every student. The same command continues
what was stopped, and adds methods and seeds.
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
    "Folder of the runs, which is made; what is done there is not done again.",
    required=True,
)
_SEEDS = flags.DEFINE_list("seeds", None, "Seeds, as 0,1,2; by default those of the config.")
_PARALLEL = flags.DEFINE_integer(
    "parallel", 1, "Runs at once, each with its share of the accelerators or the cores.", 1
)
_PROCESSES = processes.define_flags()


def main(argv: list[str]) -> None:
    """Trains what is missing, prints the tables and writes the report."""
    del argv
    config = _CONFIG.read()
    seeds = None if _SEEDS.value is None else _integers(_SEEDS.value)
    processes.join(_PROCESSES)
    environment.set_up_jax()
    result = compare(config, _WORKDIR.value, parallel=_PARALLEL.value, seeds=seeds)
    logger.info(result)


def _integers(values: list[str]) -> tuple[int, ...]:
    try:
        return tuple(int(value) for value in values)
    except ValueError:
        raise UserError(f"--seeds is {','.join(values)}; give whole numbers, as 0,1,2") from None
