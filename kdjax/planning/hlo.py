"""Reads compiled programs: their operations and collectives."""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# These name or view a buffer that exists already.
VIEWS = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "optimization-barrier")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
# The shape of a tuple stands in brackets and holds spaces.
_INSTRUCTION = re.compile(r"^  (ROOT )?%(\S+) = (\(.*?\)|\S+) ([\w-]+)\((.*)")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|called_computations|branch_computations|true_computation"
    r"|false_computation)=(\{[^}]*\}|%?[\w.\-]+)"
)
_NAME = re.compile(r"%?([\w.\-]+)")
ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
BITS = re.compile(r"(\d+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONSTANT = re.compile(r"\b[su]32\[\](?:\{[^}]*\})? constant\((\d+)\)")
_PARTITIONS = re.compile(r"num_partitions=(\d+)")
# Groups of devices: written out, as a permuted count, or as axes of a mesh.
_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}")
_COUNTED = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)")
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\[[\d,]+\](?:T\([\d,]+\))?)\))? "
    r"\{([^}]*)\}"
)
_AXIS = re.compile(r"'(\w+)'(?:=(\d+))?(?::\((\d+)\)(\d+))?")


class Instruction(NamedTuple):
    """One line of a computation, and the computations that it calls."""

    name: str
    shape: str
    operation: str
    operands: tuple[str, ...]
    calls: tuple[str, ...]
    line: str
    is_root: bool


Program = Mapping[str, list[Instruction]]


def parse(text: str) -> tuple[Program, str]:
    """The computations of an HLO module by name, and the name of the entry.

    Args:
      text: as `jax.stages.Compiled.as_text` returns it.
    """
    program: dict[str, list[Instruction]] = {}
    entry = current = ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = header[2]
            program[current] = []
            entry = current if header[1] else entry
        elif found := _INSTRUCTION.match(line):
            root, name, shape, operation, rest = found.groups()
            arguments, _, attributes = rest.partition("), ")
            calls = [x for value in _CALLED.findall(attributes) for x in _NAME.findall(value)]
            operands = re.findall(r"%([\w.-]+)", arguments)
            if operation == "parameter":
                operands = [arguments.rstrip(")")]
            program[current].append(
                Instruction(name, shape, operation, (*operands,), (*calls,), line, bool(root))
            )
    return program, entry


def runs_of(program: Program, entry: str, through: Collection[str] | None) -> dict[str, int]:
    """How often each computation runs when the module runs once.

    A loop turns as often as the module tells: XLA's own remark, or the only constant of its
    condition. Otherwise it counts once.

    Args:
      program: as `parse` returns it.
      entry: likewise.
      through: operations whose computations are followed; None for all.
    """
    times: defaultdict[str, int] = defaultdict(int)

    def visit(name: str, count: int) -> None:
        times[name] += count
        for instruction in program[name]:
            if through is None or instruction.operation in through:
                turns = _turns(program, instruction) if instruction.operation == "while" else 1
                for called in instruction.calls:
                    if called in program:
                        visit(called, count * turns)

    visit(entry, 1)
    return times


def _turns(program: Program, loop: Instruction) -> int:
    if known := _TRIPS.search(loop.line):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop.line)
    lines = [inside.line for inside in program.get(condition[1], [])] if condition else []
    constants = _CONSTANT.findall("\n".join(lines))
    return int(constants[0]) if len(constants) == 1 else 1


@dataclasses.dataclass
class Collective:
    """All collectives of a kind in one run of a program, on one device.

    Attributes:
      kind: one of `KINDS`.
      count: how often it runs.
      bytes: of the arrays that are reduced, gathered or sent: the larger side of each.
      sent_bytes: what a device must send for them at least, over the links of its host.
      network_bytes: likewise to other hosts, where each sends a part of what its host has to.
    """

    kind: str
    count: int = 0
    bytes: int = 0
    sent_bytes: float = 0.0
    network_bytes: float = 0.0


def read_collectives(text: str, hosts: Sequence[int] = ()) -> list[Collective]:
    """Adds up the collectives of an optimized HLO module, by kind.

    Those in a loop count as often as the loop turns, where the module tells, else once.

    Args:
      text: as `jax.stages.Compiled.as_text` returns it.
      hosts: that of every device, in the order of the program; empty where it makes no difference.
    """
    program, entry = parse(text)
    found = _PARTITIONS.search(text)
    if not hosts:
        hosts = [0] * (int(found[1]) if found else 1)
    totals = {kind: Collective(kind) for kind in KINDS}
    for name, times in runs_of(program, entry, None).items():
        for instruction in program[name]:
            kind = instruction.operation.removesuffix("-start")
            if kind not in KINDS:
                continue
            groups = _groups(instruction.line, len(hosts))
            size = result_size(instruction)
            if kind == "reduce-scatter":
                size *= len(groups[0])
            links, network = _sent(kind, groups, hosts)
            total = totals[kind]
            total.count += times
            total.bytes += times * size
            total.sent_bytes += times * size * links
            total.network_bytes += times * size * network
    return [total for total in totals.values() if total.count]


def _groups(line: str, devices: int) -> list[list[int]]:
    """The devices that exchange something with each other; for permutations pairs of them."""
    if listed := _LISTED.search(line):
        groups = re.findall(r"\{([\d,]+)\}", listed[1])
        return [[int(device) for device in group.split(",")] for group in groups]
    if counted := _COUNTED.search(line):
        return _ids(counted[3]).reshape(int(counted[1]), int(counted[2])).tolist()
    if mesh := _MESH.search(line):
        return _mesh_groups(*mesh.groups())
    return [list(range(devices))]


def _ids(form: str) -> np.ndarray:
    """Device numbers in the order of `[2,4]T(1,0)`: counted in that shape, then transposed."""
    sides, *order = ([int(x) for x in part.split(",")] for part in re.findall(r"[\d,]+", form))
    ids = np.arange(math.prod(sides)).reshape(sides)
    return ids.transpose(*order) if order else ids


def _mesh_groups(axes: str, order: str | None, named: str) -> list[list[int]]:
    """Groups along the product of some axes, or of a factor of one: `'b':(2)4`."""
    sizes = {name: int(size) for name, size, _, _ in _AXIS.findall(axes)}
    parts = {
        name: (int(before or 1), int(taken or sizes[name]))
        for name, _, before, taken in _AXIS.findall(named)
    }
    sides = []
    for name, size in sizes.items():
        before, taken = parts.get(name, (1, 1))
        sides += [before, taken, size // (before * taken)]
    ids = _ids(order) if order else np.arange(math.prod(sides))
    middle = range(1, len(sides), 3)
    rest = [place for place in range(len(sides)) if place not in middle]
    group = math.prod(sides[place] for place in middle)
    return ids.reshape(sides).transpose(*rest, *middle).reshape(-1, group).tolist()


def _sent(kind: str, groups: list[list[int]], hosts: Sequence[int]) -> tuple[float, float]:
    """What a device sends at least within its host and to others, as shares of the array.

    What goes between hosts is reduced or not yet gathered within them, and each device of a host
    sends its part of that.
    """
    size = max(len(group) for group in groups)
    spread = max(len({hosts[device] for device in group}) for group in groups)
    if kind == "collective-permute":
        return 1.0, float(spread > 1)
    together = size // spread
    if kind == "all-to-all":
        return (together - 1) / size, (size - together) / size
    turns = 2 if kind == "all-reduce" else 1
    return turns * (1 - 1 / together), turns * (1 - 1 / spread) / together


def _sizes(shape: str) -> list[int]:
    """Bytes of each array in a shape."""
    sizes = []
    for dtype, sides in ARRAY.findall(shape):
        bits = BITS.search(dtype)
        elements = math.prod(int(side) for side in sides.split(",") if side)
        sizes.append(elements * (int(bits[1]) if bits else 8) // 8)
    return sizes


def result_size(instruction: Instruction) -> int:
    """Bytes of what a collective returns.

    The start of an asynchronous one returns its operands before its results, but for all-reduce:
    `(x, y)`, on a GPU also `((x1, x2), (y1, y2))`, and on a TPU numbers behind them.
    """
    sizes = _sizes(instruction.shape)
    if not instruction.operation.endswith("-start") or instruction.operation == "all-reduce-start":
        return sum(sizes)
    if instruction.operation == "all-gather-start" or instruction.shape.startswith("(("):
        return sum(sizes[len(instruction.operands) :][: len(instruction.operands)])
    return sizes[1]
