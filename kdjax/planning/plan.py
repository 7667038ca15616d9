"""Measures the memory, work, and least time of a compiled training step."""

import dataclasses
import time
from collections.abc import Callable

import jax

from kdjax.config import RunOptions
from kdjax.planning.chips import Chip
from kdjax.planning.collectives import Collective, read_collectives
from kdjax.planning.program import DoesNotFit, Program, Work, make_program
from kdjax.planning.topology import Topology

# A measurement has at least 3 steps, and 20 unless they take longer than 20 seconds together.
_WARM_UP, _LEAST_STEPS, _STEPS, _SECONDS = 2, 3, 20, 20.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """The needs of a training step on a topology.

    Attributes:
      batch_size: images on all devices together.
      memory: bytes on one device, by kind, as far as they are known.
      refusal: the compiler's reason to refuse the step; empty if it compiled.
      work: multiplications and additions on all devices.
      collectives: data that one device exchanges with others.
      seconds: the time of a step at the peak of each resource: "compute", "interconnect" (links),
        and "network" (between hosts). Empty if the step did not compile or the chip is unknown.
      measured_seconds: the time of each step that was run, after two warm-up steps.
      measured_peak: most bytes in use on the first device since the process started. None if no
        step was run, or if the back end does not report it, as on a CPU.
    """

    batch_size: int
    memory: dict[str, int]
    refusal: str
    work: Work
    collectives: list[Collective] = dataclasses.field(default_factory=list)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    measured_seconds: tuple[float, ...] = ()
    measured_peak: int | None = None

    @property
    def needed(self) -> int:
        """Bytes on one device in total."""
        return sum(self.memory.values())

    @property
    def limit(self) -> str | None:
        """The resource that takes longest; None if no time is known."""
        return max(self.seconds, key=lambda name: self.seconds[name], default=None)

    @property
    def bound(self) -> float | None:
        """The least seconds of a step, if all resources work at once; None if unknown."""
        return max(self.seconds.values(), default=None)

    def fits(self, chip: Chip | None) -> bool | None:
        """Returns whether a device has enough memory; None if its memory is unknown."""
        if self.refusal:
            return False
        return self.needed <= chip.usable_memory if chip else None


def make_plan(
    options: RunOptions,
    topology: Topology,
    *,
    num_classes: int,
    batch_size: int,
    measure: bool = False,
) -> Plan:
    """Compiles the training step of a config for a topology, and reads what the step needs.

    Args:
      options: the config, from `kdjax.config.read`.
      topology: the devices, from `kdjax.planning.topology.find_topology`.
      num_classes: number of classes of the data.
      batch_size: images on all devices together.
      measure: True to also run the step, on devices of this machine.

    Raises:
      UserError: see `kdjax.planning.program.make_program`.
    """
    program = make_program(
        options, topology.devices, num_classes=num_classes, batch_size=batch_size
    )
    try:
        compiled = program.compile()
    except DoesNotFit as error:
        return Plan(batch_size, program.resident_bytes(), str(error), program.work)
    hosts: list[int] = []
    if topology.chip and topology.chip.network_bandwidth:
        hosts = [device.process_index for device in program.placement.mesh.devices.flat]
    found = read_collectives(compiled.as_text() or "", hosts)
    measured, peak = _measure(program, compiled) if measure else ((), None)
    return Plan(
        batch_size=batch_size,
        memory=_memory(program, compiled),
        refusal="",
        work=program.work,
        collectives=found,
        seconds=_seconds(options, topology, program.work, found),
        measured_seconds=measured,
        measured_peak=peak,
    )


def largest_plan(
    options: RunOptions, topology: Topology, plan: Plan, *, num_classes: int
) -> Plan | None:
    """Searches the largest batch that fits, in whole images per device and micro-batch.

    Args:
      options: the config.
      topology: the devices, with a chip whose memory is known.
      plan: the plan of the config's own batch, where the search starts.
      num_classes: number of classes of the data.

    Returns:
      The plan of that batch, or None if not even one image per device fits.
    """
    unit = len(topology.devices) * options.optimizer.accumulate
    plans = {plan.batch_size / unit: plan}

    def fits(count: int) -> bool:
        if count not in plans:
            size = count * unit
            plans[count] = make_plan(options, topology, num_classes=num_classes, batch_size=size)
        return bool(plans[count].fits(topology.chip))

    return plans.get(largest_count(fits, max(1, plan.batch_size // unit)))


def largest_count(fits: Callable[[int], bool], start: int) -> int:
    """Returns the largest positive n with `fits(n)`, or 0 if there is none.

    Args:
      fits: returns True up to some n, and False above. It is called as seldom as possible.
      start: the first n to try.
    """
    fitting, failing, n = 0, 0, start
    while not failing or failing - fitting > 1:
        if fits(n):
            fitting = n
        else:
            failing = n
        n = (fitting + failing) // 2 if failing else 2 * fitting
    return fitting


def _memory(program: Program, compiled: jax.stages.Compiled) -> dict[str, int]:
    """Returns the bytes of the arguments, and of what XLA allocates besides."""
    resident, analysis = program.resident_bytes(), compiled.memory_analysis()
    if analysis is None:
        return resident
    # Arrays are padded to the tiles of the chip. Arrays that the step never reads are no arguments
    # of the compiled step, so the difference can be negative.
    padding = max(0, analysis.argument_size_in_bytes - sum(resident.values()))
    return resident | {
        "padding": padding,
        "results not in place": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        "activations and temporaries": analysis.temp_size_in_bytes,
        "program": analysis.generated_code_size_in_bytes,
    }


def _seconds(
    options: RunOptions, topology: Topology, work: Work, collectives: list[Collective]
) -> dict[str, float]:
    chip = topology.chip
    if chip is None:
        return {}
    teacher = work.teacher / chip.flops[options.teacher.dtype]
    others = (work.step - work.teacher) / chip.flops[options.student.dtype]
    seconds = {"compute": (teacher + others) / len(topology.devices)}
    if sent := sum(found.sent_bytes for found in collectives):
        seconds["interconnect"] = sent / topology.send_bandwidth
    if sent := sum(found.network_bytes for found in collectives):
        seconds["network"] = sent / chip.network_bandwidth
    return seconds


def _measure(
    program: Program, compiled: jax.stages.Compiled
) -> tuple[tuple[float, ...], int | None]:
    """Runs the step; returns the seconds of each run and the peak memory, if it is reported."""
    state, frozen, batch = program.values()
    seconds: list[float] = []
    while len(seconds) < _WARM_UP + _LEAST_STEPS or (
        len(seconds) < _WARM_UP + _STEPS and sum(seconds) < _SECONDS
    ):
        started = time.perf_counter()
        state, metrics = compiled(state, frozen, batch)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - started)
    stats = program.placement.mesh.devices.flat[0].memory_stats() or {}
    return tuple(seconds[_WARM_UP:]), stats.get("peak_bytes_in_use")
