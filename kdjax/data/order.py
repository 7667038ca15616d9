"""Which example stands at a position of the endless sequence that training reads, by arithmetic."""

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64


def example_indices(
    positions: Int64[np.ndarray, "B"],
    seed: int,
    lengths: Sequence[int],
    weights: Sequence[int] = (1,),
) -> Int64[np.ndarray, "B"]:
    """Which examples stand at `positions`, numbered through all sets in turn.

    The sequence is cut into periods of `sum(weights)` positions, in each of which set k has exactly
    `weights[k]`, in a shuffled order. Each set goes through epochs of its own: every one of its
    examples comes once before any comes again, in a new order each time.

    Args:
        positions: not negative.
        seed: not negative.
        lengths: number of examples of each set.
        weights: positive, one for each set.
    """
    offsets = np.cumsum([0, *lengths])
    periods, places = np.divmod(positions, sum(weights))
    indices = []
    for period, place in zip(periods.tolist(), places.tolist(), strict=True):
        members, ranks = _period(tuple(weights), seed, period)
        member = members[place]
        epoch, rank = divmod(period * weights[member] + ranks[place], lengths[member])
        indices.append(offsets[member] + _epoch(lengths[member], seed, epoch, member)[rank])
    return np.array(indices, np.int64)


@functools.lru_cache(maxsize=64)
def _period(weights: tuple[int, ...], seed: int, period: int) -> tuple[list[int], list[int]]:
    """By place of a period: which set, and how many of its examples stand before in the period."""
    members = np.repeat(np.arange(len(weights)), weights)
    members = np.random.default_rng([seed, period, len(weights)]).permutation(members)
    counts = [np.cumsum(members == member) for member in range(len(weights))]
    ranks = [int(counts[member][place]) - 1 for place, member in enumerate(members)]
    return members.tolist(), ranks


@functools.lru_cache(maxsize=16)
def _epoch(length: int, seed: int, epoch: int, member: int) -> Int64[np.ndarray, "N"]:
    return np.random.default_rng([seed, epoch, member]).permutation(length)
