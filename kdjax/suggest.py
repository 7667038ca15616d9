"""How an error message names what would have been right."""

import difflib
from collections.abc import Iterable


def closest(name: str, known: Iterable[str]) -> str | None:
    """Returns the known name that `name` may well have been meant to be; None if none is near."""
    return next(iter(difflib.get_close_matches(name, list(known), 1)), None)


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns 'did you mean "x"?' where a known name is near, else the list of known names."""
    known = list(known)
    if near := closest(name, known):
        return f'did you mean "{near}"?'
    return f"there are: {', '.join(known)}" if known else "there are none"
