"""What a compiled step takes and moves, and how long that may last."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from kdjax.config import Config
from kdjax.planning.chips import Chip, Topology
from kdjax.planning.hlo import Collective, read_collectives
from kdjax.planning.program import DoesNotFit, Program, Work, make_program
from kdjax.planning.traffic import memory_traffic


def largest_batch(fits: Callable[[int], bool], start: int) -> int:
    """Returns the largest positive n for which `fits(n)`, or 0 where there is none.

    Args:
      fits: true up to some n, false from there on; called as seldom as possible.
      start: where to begin.
    """
    fitting, failing, n = 0, 0, start
    while not failing or failing - fitting > 1:
        if fits(n):
            fitting = n
        else:
            failing = n
        n = (fitting + failing) // 2 if failing else 2 * fitting
    return fitting


@dataclasses.dataclass(frozen=True)
class Roofline:
    """The seconds that each resource needs for a step at its peak.

    Attributes:
      compute: for the multiplications.
      memory: for the memory traffic, some of which never leaves the chip: an estimate, where the
        others are bounds. None where the traffic is unknown.
      interconnect: for the collectives over its links.
      network: for those between hosts; 0.0 where links do that too.
    """

    compute: float
    memory: float | None
    interconnect: float
    network: float = 0.0

    @property
    def step(self) -> float:
        """All that are known at once."""
        return max(self._known().values())

    @property
    def limit(self) -> str:
        """The resource that takes longest."""
        times = self._known()
        return max(times, key=lambda resource: times[resource])

    def _known(self) -> dict[str, float]:
        return {name: time for name, time in dataclasses.asdict(self).items() if time is not None}


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a step took where it was run.

    Attributes:
      seconds: of each step, after two that do not count.
      peak: most bytes in use on the first device since the process began; None where the back end
        does not tell, as on a CPU.
    """

    seconds: tuple[float, ...]
    peak: int | None

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """The first, the median and the third."""
        low, middle, high = np.percentile(self.seconds, [25, 50, 75])
        return float(low), float(middle), float(high)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a training step needs on a topology.

    Attributes:
      batch_size: images of all devices together.
      memory: bytes of one device by kind, as far as they are known.
      refusal: why the compiler refused; empty where it did not.
      work: multiplications and additions of all devices.
      compiler_flops: XLA's count on one device, the bodies of loops once; None where it has none.
      bytes_moved: read and written by one device's operations; None where nobody counted.
      counted_by: "kdjax", as `kdjax.planning.traffic.memory_traffic`; on a CPU "XLA", which takes
        the bodies of loops once, and counts what stays in caches.
      collectives: of one device.
      roofline: None where the program was refused or the chip's peak is not known.
      measured: None where the step was not run.
    """

    batch_size: int
    memory: dict[str, int]
    refusal: str
    work: Work
    compiler_flops: float | None
    bytes_moved: float | None
    counted_by: str
    collectives: list[Collective]
    roofline: Roofline | None
    measured: Measured | None = None

    @property
    def needed(self) -> int:
        """Bytes of one device in all."""
        return sum(self.memory.values())

    def fits(self, chip: Chip | None) -> bool | None:
        """Whether a device has room for it; None where its memory is not known."""
        if self.refusal:
            return False
        return self.needed <= chip.usable_memory if chip else None

    def images_per_second(self) -> float | None:
        """At the step time of the roofline."""
        return self.batch_size / self.roofline.step if self.roofline else None

    def cost(self, price_per_chip_hour: float, devices: int) -> float | None:
        """Of 1,000 steps at that time, in the currency of the price."""
        if self.roofline is None:
            return None
        return 1000 * self.roofline.step / 3600 * price_per_chip_hour * devices


def make_plan(
    config: Config,
    topology: Topology,
    *,
    num_classes: int,
    batch_size: int,
    measure: bool = False,
) -> Plan:
    """Compiles the step of a config for a topology and reads what it needs.

    Args:
      config: as `kdjax.config.default` makes it.
      topology: as `kdjax.planning.chips.find_topology` returns it.
      num_classes: of the data.
      batch_size: of all devices together.
      measure: run the step too, on devices of this machine.

    Raises:
      UserError: as `kdjax.planning.program.make_program`.
    """
    program = make_program(config, topology.devices, num_classes=num_classes, batch_size=batch_size)
    try:
        compiled = program.compile()
    except DoesNotFit as error:
        resident = program.resident_bytes()
        return Plan(batch_size, resident, str(error), program.work, None, None, "", [], None)
    devices, text = program.placement.mesh.devices.flat, compiled.as_text() or ""
    costs: Any = compiled.cost_analysis() or {}
    moved, counted_by = costs.get("bytes accessed"), "XLA"
    if (platform := devices[0].platform) != "cpu":
        # XLA has no count for GPUs that are not here, and for a TPU counts the memory on the chip.
        moved, counted_by = memory_traffic(text, spaces=platform == "tpu") or None, "kdjax"
    hosts = [device.process_index for device in devices]
    by_network = topology.chip is not None and topology.chip.network_bandwidth > 0
    found = read_collectives(text, hosts if by_network else ())
    return Plan(
        batch_size=batch_size,
        memory=_memory(program, compiled),
        refusal="",
        work=program.work,
        compiler_flops=costs.get("flops"),
        bytes_moved=moved,
        counted_by=counted_by if moved else "",
        collectives=found,
        roofline=_roofline(config, topology, program.work, moved, found),
        measured=_measure(program, compiled) if measure else None,
    )


# Steps for a median, unless they take longer together than these seconds.
_STEPS, _LEAST_STEPS, _SECONDS = 20, 3, 20.0


def _measure(program: Program, compiled: jax.stages.Compiled) -> Measured:
    state, frozen, batch = program.values()
    seconds: list[float] = []
    warm_up = 2
    while len(seconds) < warm_up + _LEAST_STEPS or (
        len(seconds) < warm_up + _STEPS and sum(seconds) < _SECONDS
    ):
        started = time.perf_counter()
        state, metrics = compiled(state, frozen, batch)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - started)
    stats = program.placement.mesh.devices.flat[0].memory_stats() or {}
    return Measured(tuple(seconds[warm_up:]), stats.get("peak_bytes_in_use"))


def _memory(program: Program, compiled: jax.stages.Compiled) -> dict[str, int]:
    """What stays, and what the compiled step takes beside it."""
    resident, analysis = program.resident_bytes(), compiled.memory_analysis()
    if analysis is None:
        return resident
    # Arrays are padded to the tiles of the chip; those that the step never reads are no arguments.
    padding = max(0, analysis.argument_size_in_bytes - sum(resident.values()))
    return resident | {
        "padding of these": padding,
        "results not in place": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        "activations and temporaries": analysis.temp_size_in_bytes,
        "program": analysis.generated_code_size_in_bytes,
    }


def _roofline(
    config: Config, topology: Topology, work: Work, moved: float | None, found: list[Collective]
) -> Roofline | None:
    chip = topology.chip
    if chip is None:
        return None
    student_peak = chip.flops[config.student.dtype]
    teacher_peak = chip.flops[config.teacher.dtype]
    compute = work.teacher / teacher_peak + (work.step - work.teacher) / student_peak
    sent = sum(collective.sent_bytes for collective in found)
    network = sum(collective.network_bytes for collective in found)
    return Roofline(
        compute=compute / len(topology.devices),
        memory=moved / chip.memory_bandwidth if moved else None,
        interconnect=sent / topology.send_bandwidth if sent else 0.0,
        network=network / chip.network_bandwidth if network else 0.0,
    )
