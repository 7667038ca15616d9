"""Reads compiled programs: float32 arrays that they write, and how often they read an argument."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

# These name or view a buffer that exists already.
VIEWS = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "optimization-barrier")


class Instruction(NamedTuple):
    """One line of a computation, and the computations that it calls."""

    name: str
    shape: str
    operation: str
    operands: tuple[str, ...]
    calls: tuple[str, ...]


Program = Mapping[str, list[Instruction]]


def parse(text: str) -> tuple[Program, str]:
    """The computations of an HLO module by name, and the name of the entry."""
    program: dict[str, list[Instruction]] = {}
    entry = current = ""
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%(\S+) \(.*\{$", line):
            current = header[2]
            program[current] = []
            entry = current if header[1] else entry
        # The shape of a tuple stands in brackets and holds spaces.
        elif found := re.match(r"  (?:ROOT )?%(\S+) = (\(.*?\)|\S+) ([\w-]+)\((.*)", line):
            name, shape, operation, rest = found.groups()
            arguments, _, attributes = rest.partition("), ")
            calls = re.findall(r"(?:calls|to_apply|body|condition)=%([\w.-]+)", attributes)
            operands = re.findall(r"%([\w.-]+)", arguments)
            if operation == "parameter":
                operands = [arguments.rstrip(")")]
            instruction = Instruction(name, shape, operation, tuple(operands), tuple(calls))
            program[current].append(instruction)
    return program, entry


def executed(program: Program, computation: str) -> Iterator[Instruction]:
    """The instructions that run one after the other; those inside fusions are not among them."""
    for instruction in program[computation]:
        yield instruction
        if instruction.operation in ("while", "call", "conditional"):
            for called in instruction.calls:
                yield from executed(program, called)


def float32_arrays(program: Program, entry: str, elements: int) -> int:
    """Buffers of float32 with at least so many elements."""
    return sum(
        math.prod(map(int, filter(None, dimensions.split(",")))) >= elements
        for instruction in executed(program, entry)
        if instruction.operation not in (*VIEWS, "while", "call", "conditional")
        for dimensions in re.findall(r"f32\[([\d,]*)\]", instruction.shape)
    )


def reads(program: Program, computation: str, argument: int) -> int:
    """How many instructions read an argument of the program."""
    names: set[str] = set()
    count = 0
    for instruction in program[computation]:
        if instruction.operation == "parameter":
            if instruction.operands == (str(argument),):
                names.add(instruction.name)
            continue
        positions = [i for i, operand in enumerate(instruction.operands) if operand in names]
        if not positions:
            continue
        if instruction.operation in VIEWS:
            names.add(instruction.name)
        elif instruction.operation == "call":
            count += sum(reads(program, instruction.calls[0], position) for position in positions)
        else:
            count += 1
    return count
