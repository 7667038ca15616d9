"""Reads compiled programs: float32 arrays that they write, and how often they read an argument."""

import math
import re
from collections.abc import Iterator

from kdjax.planning.hlo import VIEWS, Instruction, Program


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
