"""What a compiled step takes and moves, and how long that may last."""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import jax

from kdjax.config import Config
from kdjax.planning.chips import Chip, Topology
from kdjax.planning.program import DoesNotFit, Program, Work, make_program

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_WHILE = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_CALLED = re.compile(r"\b(?:calls|to_apply|called_computations)=\{?%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONSTANT = re.compile(r"\b[su]32\[\](?:\{[^}]*\})? constant\((\d+)\)")
_PARTITIONS = re.compile(r"num_partitions=(\d+)")
_GROUPS = re.compile(r"replica_groups=(?:\[\d+,(\d+)\]|\{\{([\d,]*)\})")

_BITS = re.compile(r"(\d+)")


@dataclasses.dataclass
class Collective:
    """All collectives of a kind in one run of a program, on one device.

    Attributes:
      kind: one of `KINDS`.
      count: how often it runs.
      bytes: of the arrays that are reduced, gathered or sent: the larger side of each.
      sent_bytes: what a device must send for them at least.
    """

    kind: str
    count: int = 0
    bytes: int = 0
    sent_bytes: float = 0.0


def read_collectives(text: str) -> list[Collective]:
    """Adds up the collectives of an optimized HLO module, by kind.

    Those in a loop count as often as the loop turns, where the module tells: XLA's own remark, or
    the only constant of the loop's condition. Otherwise they count once.

    Args:
      text: as `jax.stages.Compiled.as_text` returns it.
    """
    computations, entry = _split(text)
    found = _PARTITIONS.search(text)
    partitions = int(found.group(1)) if found else 1
    totals = {kind: Collective(kind) for kind in KINDS}
    for name, times in _times(computations, entry).items():
        for line in computations[name]:
            if match := _COLLECTIVE.search(line):
                kind, group = match.group(2), _group_size(line, partitions)
                size = _size(match.group(1), kind, bool(match.group(3)))
                if kind == "reduce-scatter":
                    size *= group
                total = totals[kind]
                total.count += times
                total.bytes += times * size
                total.sent_bytes += times * size * _share(kind, group)
    return [total for total in totals.values() if total.count]


def _split(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of every computation, and the name of the one that starts."""
    computations: dict[str, list[str]] = {}
    lines: list[str] = []
    entry = ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            lines = computations.setdefault(match.group(2), [])
            entry = match.group(2) if match.group(1) else entry
        elif line.startswith(" "):
            lines.append(line)
    return computations, entry


def _times(computations: dict[str, list[str]], entry: str) -> dict[str, int]:
    """How often each computation runs when the module runs once."""
    times: defaultdict[str, int] = defaultdict(int)

    def visit(name: str, count: int) -> None:
        times[name] += count
        for line in computations[name]:
            for called, turns in _calls(line, computations):
                if called in computations:
                    visit(called, count * turns)

    visit(entry, 1)
    return times


def _calls(line: str, computations: dict[str, list[str]]) -> Iterator[tuple[str, int]]:
    if match := _WHILE.search(line):
        condition, body = match.groups()
        yield body, _turns(line, computations.get(condition, []))
        return
    if match := _CALLED.search(line):
        yield match.group(1), 1
    if match := _BRANCHES.search(line):
        for name in match.group(1).split(","):
            yield name.strip().lstrip("%"), 1


def _turns(line: str, condition: list[str]) -> int:
    if known := _TRIPS.search(line):
        return int(known.group(1))
    constants = _CONSTANT.findall("\n".join(condition))
    return int(constants[0]) if len(constants) == 1 else 1


def _size(result: str, kind: str, starts: bool) -> int:
    """Bytes of a collective's result.

    The start of an asynchronous one returns its operands beside its results, but for all-reduce.
    """
    sizes = [_array_bytes(*array) for array in _ARRAY.findall(result)]
    if not starts or kind == "all-reduce":
        return sum(sizes)
    if kind == "all-gather":
        return sum(sizes[len(sizes) // 2 :])
    return sizes[1]


def _array_bytes(dtype: str, shape: str) -> int:
    elements = 1
    for side in filter(None, shape.split(",")):
        elements *= int(side)
    bits = _BITS.search(dtype)
    return elements * (int(bits.group(1)) if bits else 8) // 8


def _group_size(line: str, partitions: int) -> int:
    match = _GROUPS.search(line)
    if match is None:
        return partitions
    return int(match.group(1)) if match.group(1) else len(match.group(2).split(","))


def _share(kind: str, group: int) -> float:
    """What a device sends at least, as a share of the array, in a group of this size."""
    if kind == "collective-permute":
        return 1.0
    share = (group - 1) / group
    return 2 * share if kind == "all-reduce" else share


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
        resident = program.resident_bytes()
        return Plan(batch_size, resident, str(error), program.work, None, None, [], None)
    costs: Any = compiled.cost_analysis() or {}
    moved = float(costs.get("bytes accessed", 0.0))
    found = read_collectives(compiled.as_text() or "")
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
