"""Which parameters a config means: regular expressions on their paths."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
from jaxtyping import PyTree

from kdjax.ranges import WrongValue

# How many paths a message shows.
SHOWN = 5


def path_of(keys: tuple[Any, ...]) -> str:
    """The path of a parameter, as "student/backbone/stem/conv/kernel" or "terms/cwd/adapter/0"."""
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def map_with_paths(function: Callable[[str, Any], Any], params: PyTree) -> PyTree:
    """`function(path, leaf)` of every leaf."""
    return jax.tree_util.tree_map_with_path(
        lambda keys, leaf: function(path_of(keys), leaf), params
    )


def matches(patterns: Iterable[str], path: str) -> bool:
    """Whether any of some regular expressions is found in a path."""
    return any(re.search(pattern, path) for pattern in patterns)


def require_matches(key: str, patterns: Iterable[str], params: PyTree) -> None:
    """Requires every pattern to be found in the path of a parameter.

    Args:
      key: of the config, which holds the patterns.
      patterns: regular expressions.
      params: what is trained.

    Raises:
      UserError: naming the pattern that is not, and a few paths.
    """
    paths = [path_of(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in paths):
            # From all over the network, since neighbours are alike.
            shown = paths[:: -(-len(paths) // SHOWN)] if paths else []
            raise WrongValue(
                key,
                f'has "{pattern}", which is found in no path of the {len(paths)} parameters, as '
                f"{', '.join(shown)}",
            )
