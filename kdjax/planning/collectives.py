"""Reads the text of compiled programs (HLO): their operations, and what devices exchange."""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
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
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
# The shape of a tuple stands in parentheses and contains spaces.
_INSTRUCTION = re.compile(r"^  (?:ROOT )?%(\S+) = (\(.*?\)|\S+) ([\w-]+)\((.*)")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|called_computations|branch_computations|true_computation"
    r"|false_computation)=(\{[^}]*\}|%?[\w.\-]+)"
)
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_CONSTANT = re.compile(r"\b[su]32\[\](?:\{[^}]*\})? constant\((\d+)\)")
# XLA writes groups of devices as lists, as a transposed range, or as axes of a mesh.
_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}")
_RANGE = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)")
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\[[\d,]+\](?:T\([\d,]+\))?)\))? "
    r"\{([^}]*)\}"
)
_AXIS = re.compile(r"'(\w+)'(?:=(\d+))?(?::\((\d+)\)(\d+))?")


class Instruction(NamedTuple):
    """One line of a computation, and the names of the computations that it calls."""

    name: str
    shape: str
    operation: str
    operands: tuple[str, ...]
    calls: tuple[str, ...]
    line: str


Program = Mapping[str, list[Instruction]]


def parse(text: str) -> tuple[Program, str]:
    """Returns the computations of an HLO module by name, and the name of the entry computation.

    Args:
      text: the module, as `jax.stages.Compiled.as_text` returns it.
    """
    program: dict[str, list[Instruction]] = {}
    entry = current = ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = header[2]
            program[current] = []
            entry = current if header[1] else entry
        elif found := _INSTRUCTION.match(line):
            name, shape, operation, rest = found.groups()
            arguments, _, attributes = rest.partition("), ")
            operands = re.findall(r"%([\w.-]+)", arguments)
            if operation == "parameter":
                operands = [arguments.rstrip(")")]
            calls = re.findall(r"[\w.\-]+", " ".join(_CALLED.findall(attributes)))
            program[current].append(
                Instruction(name, shape, operation, (*operands,), (*calls,), line)
            )
    return program, entry


@dataclasses.dataclass
class Collective:
    """All collectives of one kind in one run of a program, on one device.

    Attributes:
      kind: one of `KINDS`.
      count: number of executions.
      bytes: size of the arrays that are reduced, gathered, or sent: the larger of input and output.
      sent_bytes: the least that a device sends to devices of its own host.
      network_bytes: the least that a device sends to other hosts. The devices of a host share the
        host's traffic evenly.
    """

    kind: str
    count: int = 0
    bytes: int = 0
    sent_bytes: float = 0.0
    network_bytes: float = 0.0


def read_collectives(text: str, hosts: Sequence[int] = ()) -> list[Collective]:
    """Adds up the collectives of an optimized HLO module by kind.

    A collective in a loop counts once per iteration, or once if the module does not give the number
    of iterations.

    Args:
      text: the module, as `jax.stages.Compiled.as_text` returns it.
      hosts: the host of every device, in the program's order. Empty if all devices are connected by
        links.
    """
    program, entry = parse(text)
    if not hosts:
        found = re.search(r"num_partitions=(\d+)", text)
        hosts = [0] * (int(found[1]) if found else 1)
    totals = {kind: Collective(kind) for kind in KINDS}
    for name, times in _executions(program, entry).items():
        for instruction in program[name]:
            total = totals.get(instruction.operation.removesuffix("-start"))
            if total is None:
                continue
            groups = _groups(instruction.line, len(hosts))
            size = _result_bytes(instruction)
            if total.kind == "reduce-scatter":
                size *= len(groups[0])
            links, network = _sent_shares(total.kind, groups, hosts)
            total.count += times
            total.bytes += times * size
            total.sent_bytes += times * size * links
            total.network_bytes += times * size * network
    return [total for total in totals.values() if total.count]


def _executions(program: Program, entry: str) -> Counter[str]:
    """Returns how often each computation runs in one run of the program."""
    times: Counter[str] = Counter()

    def visit(name: str, count: int) -> None:
        times[name] += count
        for instruction in program[name]:
            turns = _iterations(program, instruction) if instruction.operation == "while" else 1
            for called in instruction.calls:
                if called in program:
                    visit(called, count * turns)

    visit(entry, 1)
    return times


def _iterations(program: Program, loop: Instruction) -> int:
    """Returns the iterations of a loop, or 1 if the module does not give their number.

    The CPU and GPU compilers annotate the loop. A TPU's program only compares with a constant.
    """
    if known := _TRIPS.search(loop.line):
        return int(known[1])
    condition = _CONDITION.search(loop.line)
    lines = [x.line for x in program.get(condition[1], [])] if condition else []
    constants = _CONSTANT.findall("\n".join(lines))
    return int(constants[0]) if len(constants) == 1 else 1


def _groups(line: str, devices: int) -> list[list[int]]:
    """Returns the groups of devices that exchange data; for permutations, the pairs."""
    if listed := _LISTED.search(line):
        groups = re.findall(r"\{([\d,]+)\}", listed[1])
        return [[int(device) for device in group.split(",")] for group in groups]
    if counted := _RANGE.search(line):
        return _device_ids(counted[3]).reshape(int(counted[1]), int(counted[2])).tolist()
    if mesh := _MESH.search(line):
        return _mesh_groups(*mesh.groups())
    return [list(range(devices))]


def _device_ids(form: str) -> np.ndarray:
    """Reads `[2,4]T(1,0)`: the numbers 0 to 7 in the shape [2, 4], transposed."""
    shape, *order = ([int(x) for x in part.split(",")] for part in re.findall(r"[\d,]+", form))
    ids = np.arange(math.prod(shape)).reshape(shape)
    return ids.transpose(*order) if order else ids


def _mesh_groups(axes: str, order: str | None, named: str) -> list[list[int]]:
    """Returns the groups along the named axes of a mesh.

    A group can also span a factor of an axis: `'b':(2)4` is the factor of size 4 after one of 2.
    """
    sizes = {name: int(size) for name, size, _, _ in _AXIS.findall(axes)}
    parts = {
        name: (int(before or 1), int(taken or sizes[name]))
        for name, _, before, taken in _AXIS.findall(named)
    }
    shape = []
    for name, size in sizes.items():
        before, taken = parts.get(name, (1, 1))
        shape += [before, taken, size // (before * taken)]
    ids = _device_ids(order) if order else np.arange(math.prod(shape))
    within = range(1, len(shape), 3)
    across = [axis for axis in range(len(shape)) if axis not in within]
    group = math.prod(shape[axis] for axis in within)
    return ids.reshape(shape).transpose(*across, *within).reshape(-1, group).tolist()


def _sent_shares(kind: str, groups: list[list[int]], hosts: Sequence[int]) -> tuple[float, float]:
    """Returns the least that a device sends within its host and to others, as array shares.

    Data that leave a host are already reduced, or not yet gathered, within the host.
    """
    size = max(len(group) for group in groups)
    spread = max(len({hosts[device] for device in group}) for group in groups)
    if kind == "collective-permute":
        return 1.0, float(spread > 1)
    together = size // spread
    if kind == "all-to-all":
        return (together - 1) / size, (size - together) / size
    passes = 2 if kind == "all-reduce" else 1
    return passes * (1 - 1 / together), passes * (1 - 1 / spread) / together


def _result_bytes(instruction: Instruction) -> int:
    """Returns the bytes of the arrays that a collective returns.

    The start of an asynchronous collective returns its operands before its results, and on a TPU
    numbers after them. The start of an all-reduce returns its results alone.
    """
    sizes = []
    for dtype, sides in _ARRAY.findall(instruction.shape):
        bits = re.search(r"\d+", dtype)
        elements = math.prod(int(side) for side in sides.split(",") if side)
        sizes.append(elements * (int(bits[0]) if bits else 8) // 8)
    if instruction.operation.endswith("-start") and instruction.operation != "all-reduce-start":
        operands = len(instruction.operands)
        sizes = sizes[operands : 2 * operands]
    return sum(sizes)
