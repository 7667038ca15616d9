"""What shows at length what a shorter test shows: CI runs it, and a user is spared it."""

from collections.abc import Sequence
from typing import Any

import pytest


def after(count: int, cases: Sequence[Any]) -> list[Any]:
    """The cases of a test, of which a user runs the first `count` and CI all.

    Args:
      count: how many a user runs.
      cases: as `pytest.mark.parametrize` takes them.
    """
    values = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [
        *cases[:count],
        *(pytest.param(*value, marks=pytest.mark.thorough) for value in values[count:]),
    ]
