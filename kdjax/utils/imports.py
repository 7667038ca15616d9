"""Names that stand for built-in objects or a user's own, as "package.module:attribute".

Names survive JSON, checkpoints, and other processes, which objects do not. Built-in names are keys
of tables of such strings, and are resolved in the same way.
"""

import difflib
import functools
import importlib
import inspect
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from kdjax.utils.errors import RAISED_BY_USERS, UserError, WrongValue

SEPARATOR = ":"
MAIN = "__main__"


def resolve(kind: str, name: str, builtin: Mapping[str, str], *, asked_by: str) -> Any:
    """Returns the object that a name stands for.

    Args:
      kind: what the name stands for, such as "network", for messages.
      name: a key of `builtin`, or "package.module:attribute".
      builtin: built-in name -> "package.module:attribute".
      asked_by: the key or the file that holds the name, for messages.

    Raises:
      UserError: if the name is unknown (with the nearest known one), or the module cannot be
        imported or has no such attribute.
    """
    module, separator, attribute = builtin.get(name, name).partition(SEPARATOR)
    if not (separator and module and attribute):
        raise WrongValue(
            asked_by,
            f'names the unknown {kind} "{name}": {did_you_mean(name, builtin)} (one of your own is '
            'named "package.module:attribute")',
        )
    try:
        found = importlib.import_module(module)
    except RAISED_BY_USERS as error:
        reason = _import_failure(module, error)
        raise WrongValue(asked_by, f'names the {kind} "{name}": {reason}') from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            if module == MAIN:
                problem = ", which a notebook or a script defined: put it into a module of its own"
            else:
                known = [known for known in vars(found) if not known.startswith("_")]
                problem = f': {module} has no "{attribute}"; {did_you_mean(part, known)}'
            raise WrongValue(asked_by, f'names the {kind} "{name}"{problem}')
        found = getattr(found, part)
    return found


def _import_failure(module: str, error: BaseException) -> str:
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing and f"{module}.".startswith(f"{missing}."):
        return f'there is no module "{missing}" on the path; set PYTHONPATH to the folder it is in'
    return f"{module} cannot be imported: {type(error).__name__}: {error}"


def is_path(text: str) -> bool:
    """Returns True for the path of a file or folder, False for "package.module:attribute"."""
    module, separator, attribute = text.partition(SEPARATOR)
    parts = (*module.split("."), *attribute.split("."))
    return not separator or not all(part.isidentifier() for part in parts)


def arguments(
    kind: str,
    name: str,
    factory: Callable[..., Any],
    options: Mapping[str, Any],
    offered: Mapping[tuple[str, ...], Any],
    if_required: Mapping[str, Any] = MappingProxyType({}),
    *,
    key: str,
    options_key: str,
) -> dict[str, Any]:
    """Returns the keyword arguments of a named factory: its options, and offers that it accepts.

    Args:
      kind: what the name stands for, for messages.
      name: the factory's name, as in `resolve`.
      factory: the factory.
      options: the user's options, which are passed unchanged.
      offered: value by possible names of one argument. The value is passed under the first name
        that the factory accepts, unless an option sets it.
      if_required: value by argument. It is passed to an argument of that name without a default.
      key: the key of the name, for messages.
      options_key: the key of the options, for messages.

    Raises:
      UserError: if the factory does not accept an option, or an argument is missing.
    """
    try:
        signature = _signature(factory)
    except (TypeError, ValueError) as error:
        reason = f"which cannot be called: {error}"
        raise WrongValue(key, f'names the {kind} "{name}", {reason}') from error
    parameters = signature.parameters
    given = dict(options)
    any_option = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    unknown = [option for option in given if option not in parameters]
    if unknown and not any_option:
        raise WrongValue(
            f"{options_key}.{unknown[0]}",
            f"is no argument of {name}: {did_you_mean(unknown[0], parameters)}",
        )
    for synonyms, value in offered.items():
        if accepted := next((synonym for synonym in synonyms if synonym in parameters), None):
            given.setdefault(accepted, value)
    for argument, value in if_required.items():
        if argument in parameters and parameters[argument].default is inspect.Parameter.empty:
            given.setdefault(argument, value)
    try:
        signature.bind(**given)
    except TypeError as error:
        reason = f"which is {error}; set it in {options_key}"
        raise WrongValue(key, f'names the {kind} "{name}", {reason}') from error
    return given


def _signature(factory: Callable[..., Any]) -> inspect.Signature:
    """Returns the signature of a factory, also if a metaclass hides it, as in Flax NNX."""
    if not callable(factory):
        raise TypeError(f"{factory!r} is not a function or a class")
    function, args, keywords = factory, (), {}
    if isinstance(factory, functools.partial):
        function, args, keywords = factory.func, factory.args, factory.keywords
    if isinstance(function, type):
        function, args = function.__init__, (None, *args)
    return inspect.signature(functools.partial(function, *args, **keywords))


def make_importable(folder: pathlib.Path) -> None:
    """Appends a folder to the module path of this process and of processes started later."""
    place = str(folder.resolve())
    for path in (sys.path, inherited := os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        if place not in path:
            path.append(place)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, inherited))


def name_of(kind: str, value: str | Callable[..., Any]) -> str:
    """Returns the name by which `resolve` finds an object. A name is returned unchanged.

    An object of a notebook or a script is named "__main__:attribute". Other processes cannot find
    it.

    Args:
      kind: what the name stands for, for messages.
      value: a name, or a function or class at the top of a module.

    Raises:
      UserError: if the object has no name, such as a lambda or the result of a function.
    """
    if isinstance(value, str):
        return value
    module, attribute = getattr(value, "__module__", None), getattr(value, "__qualname__", "<")
    if module is None or "<" in attribute:
        raise UserError(
            f"the {kind} {value!r} has no name that a config could hold: define a function or a "
            "class at the top of a module, or of a notebook"
        )
    return f"{module}{SEPARATOR}{attribute}"


def closest_match(name: str, known: Iterable[str]) -> str | None:
    """Returns the known name nearest to `name`, or None if none is near."""
    return next(iter(difflib.get_close_matches(name, list(known), 1)), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns 'did you mean "x"?' if a known name is near, and the list of known names if not."""
    known = list(known)
    if near := closest_match(name, known):
        return f'did you mean "{near}"?'
    return f"there are: {', '.join(known)}" if known else "there are none"
