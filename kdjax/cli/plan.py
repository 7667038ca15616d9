"""Plans a training step for devices that are not present: memory, work, traffic, and a time bound.

python -m kdjax plan --config configs/quickstart.py --topology v5e:4x4 --search_batch

Compiles the step of a config from shapes alone: no data, weights, or accelerator are needed. TPUs
need `pip install "kdjax[tpu]"`; GPUs (h100:8, or h100:2x8 for two hosts) need `"kdjax[cuda-plan]"`.
`--topology local` plans for the devices of this machine, and `--measure` also runs the step there.
Times are lower bounds at the chip's peak, which no real step reaches.
"""

import pathlib
import tempfile

import jax
from absl import flags

from kdjax.cli.flags import ConfigFlag
from kdjax.data.preparing.classes import known_classes
from kdjax.planning import formatting
from kdjax.planning.plan import Plan, largest_plan, make_plan
from kdjax.planning.topology import LOCAL, find_topology
from kdjax.utils.errors import UserError
from kdjax.utils.files import to_json, why_unwritable, write_atomically

_CONFIG = ConfigFlag()
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "As v5e:4x4, h100:8 or h100:2x8; local for the devices of this machine."
)
_CLASSES = flags.DEFINE_integer(
    "num_classes", None, "Number of classes, if the data set has no class table.", lower_bound=1
)
_SEARCH = flags.DEFINE_bool("search_batch", False, "Search the largest batch that fits.")
_MEASURE = flags.DEFINE_bool("measure", False, "Also run the step, with --topology local.")
_JSON = flags.DEFINE_string("json", None, "A file to write the plan to.")


def main(argv: list[str]) -> None:
    """Prints the plan and writes it as JSON."""
    del argv
    config = _CONFIG.read()
    if _TOPOLOGY.value is None:
        raise UserError("--topology is missing, as in --topology v5e:4x4, h100:8 or local")
    output = pathlib.Path(_JSON.value) if _JSON.value else None
    if output:
        _check_writable(output)
    if _TOPOLOGY.value != LOCAL:
        if _MEASURE.value:
            raise UserError(
                f"--measure runs on this machine: --topology local, not {_TOPOLOGY.value}"
            )
        # Keeps JAX from starting an accelerator of this machine.
        jax.config.update("jax_platforms", "cpu")
    topology = find_topology(_TOPOLOGY.value)
    if _SEARCH.value and topology.chip is None:
        kind = topology.devices[0].device_kind
        raise UserError(f"--search_batch: the memory of {kind} is not in the chip table")
    classes = _CLASSES.value or known_classes(config.data.name)
    print("Compiling the training step, which takes minutes for large networks\n", flush=True)
    size = config.data.batch_size
    plan = make_plan(config, topology, num_classes=classes, batch_size=size, measure=_MEASURE.value)
    print(formatting.as_text(config, topology, plan))
    found = formatting.as_json(config, topology, plan)
    if _SEARCH.value:
        largest = largest_plan(config, topology, plan, num_classes=classes)
        found["largest_batch"] = largest and formatting.as_json(config, topology, largest)
        print(f"\nLargest batch that fits: {_describe(largest, len(topology.devices))}")
    if output:
        write_atomically(output, to_json(found, indent=1))


def _describe(largest: Plan | None, devices: int) -> str:
    if largest is None:
        return "not even one image a device"
    size, needed = largest.batch_size, formatting.as_bytes(largest.needed)
    return f"{size} images, {size // devices} a device, {needed} of a device's memory"


def _check_writable(output: pathlib.Path) -> None:
    """Checks the output file before the compilation, which may take minutes.

    Raises:
      UserError: if the file cannot be written.
    """
    if output.exists() and not output.is_file():
        kind = "a folder" if output.is_dir() else "no regular file"
        raise UserError(f"--json {output} is {kind}; name a file")
    try:
        tempfile.NamedTemporaryFile(prefix=f".{output.name}.", dir=output.parent).close()
    except OSError as error:
        raise UserError(f"--json {output} cannot be written: {why_unwritable(error)}") from error
