"""The largest batch that fits, by doubling and bisection."""

from collections.abc import Callable


def largest(fits: Callable[[int], bool], start: int) -> int:
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
