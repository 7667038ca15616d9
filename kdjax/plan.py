"""Plans a training step for hardware that is not here: memory, work, traffic, time and cost.

python -m kdjax.plan --config configs/quickstart.py --topology v5e:4x4 --search_batch

Compiles the config's step from shapes alone: no data, no weights, no accelerator. TPUs need
`pip install "kdjax[tpu]"`, GPUs (h100:8, or h100:2x8 for two hosts) `"kdjax[cuda-plan]"`;
`--topology local` takes the devices of this machine. Times are those of a chip at its peak, which
no real step reaches; `--topology local --measure` runs the step and prints what it took beside.
"""

import pathlib
import tempfile

import jax
from absl import flags

from kdjax.cli import command
from kdjax.cli.flags import ConfigFlag
from kdjax.config import Config
from kdjax.data.preparing.classes import known_classes
from kdjax.errors import UserError
from kdjax.files import to_json, why_unwritable, write_atomically
from kdjax.planning import chips, estimate, tables
from kdjax.planning.chips import Topology
from kdjax.planning.estimate import Plan, make_plan

_CONFIG = ConfigFlag()
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "As v5e:4x4, h100:8 or h100:2x8; local for the devices of this machine."
)
_CLASSES = flags.DEFINE_integer(
    "num_classes", None, "Classes of the data, where its name does not say.", lower_bound=1
)
_PRICE = flags.DEFINE_float("price_per_chip_hour", None, "For the cost of steps.", lower_bound=0)
_SEARCH = flags.DEFINE_bool("search_batch", False, "Search the largest batch that fits.")
_MEASURE = flags.DEFINE_bool("measure", False, "Run the step too, with --topology local.")
_JSON = flags.DEFINE_string("json", None, "A file to write the plan to.")


def main(argv: list[str]) -> None:
    """Prints the plan and writes it as JSON."""
    del argv
    config = _CONFIG.read()
    if _TOPOLOGY.value is None:
        raise UserError("--topology is missing, as in --topology v5e:4x4, h100:8 or local")
    output = pathlib.Path(_JSON.value) if _JSON.value else None
    if output and not output.parent.is_dir():
        raise UserError(f"--json {output}: there is no folder {output.parent}")
    if output and output.exists() and not output.is_file():
        kind = "a folder" if output.is_dir() else "no regular file"
        raise UserError(f"--json {output} is {kind}; name a file")
    if output:
        _check_writable(output)
    if _MEASURE.value and _TOPOLOGY.value != chips.LOCAL:
        raise UserError(f"--measure runs on this machine: --topology local, not {_TOPOLOGY.value}")
    if _TOPOLOGY.value != chips.LOCAL:
        # What is attached here is not asked, and not needed.
        jax.config.update("jax_platforms", "cpu")
    found = chips.find_topology(_TOPOLOGY.value)
    if _SEARCH.value and found.chip is None:
        raise UserError(
            f"--search_batch: the memory of {found.devices[0].device_kind} is not in the chip table"
        )
    classes = _CLASSES.value or known_classes(config.data.name)
    print("compiles the training step, which takes minutes for large networks\n", flush=True)
    plan = make_plan(
        config,
        found,
        num_classes=classes,
        batch_size=config.data.batch_size,
        measure=_MEASURE.value,
    )
    largest = _largest(config, found, plan, classes) if _SEARCH.value else None
    told = (config, found, plan, _PRICE.value, largest)
    if output:
        write_atomically(output, to_json(tables.as_json(*told), indent=1))
    print(tables.as_text(*told))


def _check_writable(output: pathlib.Path) -> None:
    """Makes and removes a file there, since compiling may take minutes."""
    try:
        tempfile.NamedTemporaryFile(prefix=f".{output.name}.", dir=output.parent).close()
    except OSError as error:
        raise UserError(f"--json {output} cannot be written: {why_unwritable(error)}") from error


def _largest(config: Config, found: Topology, plan: Plan, classes: int) -> tables.Largest:
    """Compiles batches until the largest is known, each a whole number of images a device."""
    unit = len(found.devices) * config.optimizer.accumulate
    plans = {plan.batch_size // unit: plan} if plan.batch_size % unit == 0 else {}

    def fits(count: int) -> bool:
        if count not in plans:
            plans[count] = make_plan(config, found, num_classes=classes, batch_size=count * unit)
        return bool(plans[count].fits(found.chip))

    best = estimate.largest_batch(fits, max(1, plan.batch_size // unit))
    return tables.Largest(plans.get(best), len(plans))


if __name__ == "__main__":
    command.run(main)
