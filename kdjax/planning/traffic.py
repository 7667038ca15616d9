"""Counts what a compiled program moves between a device and its memory."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from kdjax.planning.hlo import (
    ARRAY,
    BITS,
    KINDS,
    VIEWS,
    Instruction,
    Program,
    parse,
    result_size,
    runs_of,
)

# These run other computations, one operation after the other.
_CONTROL = ("while", "call", "conditional", "async-start")
# Calls of a TPU's compiler that name or view a buffer.
_VIEW_CALLS = ("AllocateBuffer", "ConcatBitcast")
# These read no more of their first operand than they return.
_SLICES = ("dynamic-slice", "slice", "gather")
# An array and its layout: the sides from the innermost on, a tile, and the memory that it is in.
_LAID_OUT = re.compile(
    ARRAY.pattern + r"(?:\{([\d,]*)(?::(?:T\(([\d,]+)\))?[^}S]*(?:S\((\d+)\))?[^}]*)?\})?"
)


def memory_traffic(text: str, *, spaces: bool = False) -> int:
    """Bytes that the operations of one device read and write in a run of an optimized HLO module.

    Each operation reads its operands and writes its results once, and loops turn as often as the
    module tells. Of what is sliced or updated in place, only that part counts. What stays in a
    cache between two operations counts too; what tiles pad counts as data.

    Args:
      text: as `jax.stages.Compiled.as_text` returns it.
      spaces: whether the layouts name memories other than the device's, as TPUs' programs do with
        those on the chip: arrays there are neither read nor written.
    """
    program, entry = parse(text)
    return sum(
        times * sum(_moved(program, name, spaces))
        for name, times in runs_of(program, entry, _CONTROL).items()
    )


class _Array(NamedTuple):
    """Bytes that an array takes, and those of them in the device's memory: all or none."""

    whole: int
    held: int


def _arrays(shape: str, spaces: bool) -> list[_Array]:
    arrays = []
    for dtype, sides, order, tile, space in _LAID_OUT.findall(shape):
        lengths = [int(side) for side in sides.split(",") if side]
        tiles = reversed([int(side) for side in tile.split(",") if side])
        for place, side in zip((int(x) for x in order.split(",") if x), tiles, strict=False):
            lengths[place] = -(-lengths[place] // side) * side
        bits = BITS.search(dtype)
        size = math.prod(lengths) * (int(bits[1]) if bits else 8) // 8
        arrays.append(_Array(size, 0 if spaces and space else size))
    return arrays


def _sums(body: list[Instruction], spaces: bool) -> dict[str, _Array]:
    """What the results of each instruction take."""
    found = {x.name: _arrays(x.shape, spaces) for x in body}
    return {
        name: _Array(sum(x.whole for x in arrays), sum(x.held for x in arrays))
        for name, arrays in found.items()
    }


def _moved(program: Program, computation: str, spaces: bool) -> Iterator[int]:
    sizes = _sums(program[computation], spaces)
    for instruction in program[computation]:
        operation, operands = instruction.operation, instruction.operands
        if (
            operation in (*VIEWS, *_CONTROL)
            or operation.endswith("-done")
            or any(f'custom_call_target="{name}"' in instruction.line for name in _VIEW_CALLS)
        ):
            continue
        result, read = sizes[instruction.name], [sizes[x] for x in operands if x in sizes]
        if operation == "fusion" and instruction.calls[0] in program:
            yield _moved_by_fusion(program[instruction.calls[0]], spaces)
        elif operation == "copy-start":
            yield result.held  # the copy, and what is copied
        elif operation == "slice-start":
            part = _arrays(instruction.shape, spaces)[len(operands)]
            yield part.held + (part.whole if read[0].held else 0)
        elif operation in _SLICES:
            yield result.held + (result.whole if not read or read[0].held else 0)
        elif operation == "dynamic-update-slice":
            yield read[1].held + (read[1].whole if result.held else 0)
        else:
            is_collective = operation.removesuffix("-start") in KINDS
            written = result_size(instruction) if is_collective else result.held
            yield sum(x.held for x in read) + written


def _moved_by_fusion(body: list[Instruction], spaces: bool) -> int:
    """What a fused computation reads of its parameters, and what it writes."""
    sizes = _sums(body, spaces)
    by_name = {x.name: x for x in body}

    def source(name: str) -> str:
        while by_name[name].operation == "bitcast":
            name = by_name[name].operands[0]
        return name

    root = next(x for x in body if x.is_root)
    written = root.operands if root.operation == "tuple" else (root.name,)
    total, in_place = 0, set()
    for name in written:
        result, held = source(name), sizes[name].held
        if held and by_name[result].operation == "dynamic-update-slice":
            in_place.add(result)
            total += sizes[by_name[result].operands[1]].whole
        else:
            total += held
    for parameter in (x for x in body if x.operation == "parameter" and sizes[x.name].held):
        read = 0
        for user in body:
            if user.operation in ("bitcast", "tuple", "parameter"):
                continue
            places = [i for i, x in enumerate(user.operands) if source(x) == parameter.name]
            if places == [0] and user.operation in _SLICES:
                read += sizes[user.name].whole
            elif places and not (places == [0] and user.name in in_place):
                read = sizes[parameter.name].whole
                break
        total += min(read, sizes[parameter.name].whole)
    return total
