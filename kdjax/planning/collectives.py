"""Reads the collectives of a compiled program: how often each kind runs, and its bytes."""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterator

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


def read(text: str) -> list[Collective]:
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
