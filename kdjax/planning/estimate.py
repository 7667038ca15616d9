"""From a compiled step to its plan: memory, work, traffic, and its time at the chip's peak."""

import dataclasses
from typing import Any

import jax

from kdjax.config import Config
from kdjax.planning import collectives
from kdjax.planning.chips import Chip
from kdjax.planning.collectives import Collective
from kdjax.planning.program import DoesNotFit, Program, Work, make_program
from kdjax.planning.topology import Topology


@dataclasses.dataclass(frozen=True)
class Roofline:
    """The seconds that each resource needs for a step at its peak.

    Attributes:
      compute: for the multiplications.
      memory: for the bytes that XLA counts, some of which never leave the chip: an estimate, where
        the other two are bounds.
      interconnect: for the collectives over its links.
    """

    compute: float
    memory: float
    interconnect: float

    @property
    def step(self) -> float:
        """All three at once."""
        return max(dataclasses.astuple(self))

    @property
    def limit(self) -> str:
        """The resource that takes longest."""
        times = dataclasses.asdict(self)
        return max(times, key=lambda resource: times[resource])


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a training step needs on a topology.

    Attributes:
      batch_size: images of all devices together.
      memory: bytes of one device by kind, as far as they are known.
      refusal: why the compiler refused; empty where it did not.
      work: multiplications and additions of all devices.
      compiler_flops: XLA's count on one device, the bodies of loops once; None if refused.
      bytes_moved: read and written by one device's operations by XLA's count, which takes the
        bodies of loops once, and what stays in memory on the chip as well.
      collectives: of one device.
      roofline: None where the program was refused or the chip's peak is not known.
    """

    batch_size: int
    memory: dict[str, int]
    refusal: str
    work: Work
    compiler_flops: float | None
    bytes_moved: float | None
    collectives: list[Collective]
    roofline: Roofline | None

    @property
    def needed(self) -> int:
        """Bytes of one device in all."""
        return sum(self.memory.values())

    def fits(self, chip: Chip | None) -> bool | None:
        """Whether a device has room for it; None where its memory is not known."""
        if self.refusal:
            return False
        return self.needed <= chip.memory if chip else None

    def images_per_second(self) -> float | None:
        """At the step time of the roofline."""
        return self.batch_size / self.roofline.step if self.roofline else None

    def cost(self, price_per_chip_hour: float, devices: int) -> float | None:
        """Of 1,000 steps at that time, in the currency of the price."""
        if self.roofline is None:
            return None
        return 1000 * self.roofline.step / 3600 * price_per_chip_hour * devices


def make_plan(config: Config, topology: Topology, *, num_classes: int, batch_size: int) -> Plan:
    """Compiles the step of a config for a topology and reads what it needs.

    Raises:
      UserError: as `kdjax.planning.program.make_program`.
    """
    program = make_program(config, topology.devices, num_classes=num_classes, batch_size=batch_size)
    try:
        compiled = program.compile()
    except DoesNotFit as error:
        held = program.held()
        return Plan(batch_size, held, str(error), program.work, None, None, [], None)
    costs: Any = compiled.cost_analysis() or {}
    moved = float(costs.get("bytes accessed", 0.0))
    found = collectives.read(compiled.as_text() or "")
    return Plan(
        batch_size=batch_size,
        memory=_memory(program, compiled),
        refusal="",
        work=program.work,
        compiler_flops=float(costs.get("flops", 0.0)),
        bytes_moved=moved,
        collectives=found,
        roofline=_roofline(config, topology, program.work, moved, found),
    )


def _memory(program: Program, compiled: jax.stages.Compiled) -> dict[str, int]:
    """What stays, and what the compiled step takes beside it."""
    held, analysis = program.held(), compiled.memory_analysis()
    if analysis is None:
        return held
    # Arrays are padded to the tiles of the chip; those that the step never reads are no arguments.
    padding = max(0, analysis.argument_size_in_bytes - sum(held.values()))
    return held | {
        "padding of these": padding,
        "results not in place": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        "activations and temporaries": analysis.temp_size_in_bytes,
        "program": analysis.generated_code_size_in_bytes,
    }


def _roofline(
    config: Config, topology: Topology, work: Work, moved: float, found: list[Collective]
) -> Roofline | None:
    chip = topology.chip
    if chip is None:
        return None
    student_peak = chip.flops[config.student.dtype]
    teacher_peak = chip.flops[config.teacher.dtype]
    compute = work.teacher / teacher_peak + (work.step - work.teacher) / student_peak
    sent = sum(collective.sent_bytes for collective in found)
    return Roofline(
        compute=compute / len(topology.devices),
        memory=moved / chip.memory_bandwidth,
        interconnect=sent / topology.send_bandwidth if sent else 0.0,
    )
