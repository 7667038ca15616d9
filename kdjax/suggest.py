"""How an error message names what would have been right."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns 'did you mean "x"?' where a known name is near, else the list of known names."""
    known = list(known)
    near = difflib.get_close_matches(name, known, 1)
    if near:
        return f'did you mean "{near[0]}"?'
    return f"there are: {', '.join(known)}" if known else "there are none"
