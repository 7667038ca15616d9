"""Counts the float32 arrays that a compiled program writes, and its reads of an argument."""

import math
import re
from collections.abc import Iterator

from kdjax.planning.collectives import Instruction, Program

# These operations name or view a buffer that exists already.
VIEWS = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "optimization-barrier")


def executed(program: Program, computation: str) -> Iterator[Instruction]:
    """Yields the instructions that run, in order. A fusion is one instruction."""
    for instruction in program[computation]:
        yield instruction
        if instruction.operation in ("while", "call", "conditional"):
            for called in instruction.calls:
                yield from executed(program, called)


def float32_arrays(program: Program, entry: str, elements: int) -> int:
    """Returns the number of float32 buffers with at least `elements` elements."""
    return sum(
        math.prod(map(int, filter(None, dimensions.split(",")))) >= elements
        for instruction in executed(program, entry)
        if instruction.operation not in (*VIEWS, "while", "call", "conditional")
        for dimensions in re.findall(r"f32\[([\d,]*)\]", instruction.shape)
    )


def reads(program: Program, computation: str, argument: int) -> int:
    """Returns the number of instructions that read an argument of the program."""
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
