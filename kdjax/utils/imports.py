"""Names of things that may be the user's own: a built-in name, or "package.module:attribute".

Strings survive JSON, checkpoints and other processes, where objects do not. What kdjax brings
stands in tables of such strings itself, and is found in the same way.
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
    """Returns what a name stands for.

    Args:
      kind: what is named, for messages, as "network".
      name: a key of `builtin`, or "package.module:attribute" of whatever can be imported.
      builtin: built-in name -> "package.module:attribute".
      asked_by: the key or the file that holds the name, for messages.

    Raises:
      UserError: for an unknown name, with the nearest; for a module that cannot be imported or has
        no such attribute, with the reason.
    """
    path = builtin.get(name, name)
    module, separator, attribute = path.partition(SEPARATOR)
    if not (separator and module and attribute):
        raise WrongValue(
            asked_by,
            f'names the unknown {kind} "{name}": {did_you_mean(name, builtin)} (one of your own is '
            'named "package.module:attribute")',
        )
    try:
        found = importlib.import_module(module)
    except RAISED_BY_USERS as error:
        raise WrongValue(asked_by, f'names the {kind} "{name}": {_why(module, error)}') from error
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            known = [known for known in vars(found) if not known.startswith("_")]
            if module == MAIN:
                reason = "which a notebook or a script defined: put it into a module of its own"
                raise WrongValue(asked_by, f'names the {kind} "{name}", {reason}') from None
            raise WrongValue(
                asked_by,
                f'names the {kind} "{name}": {module} has no "{attribute}"; '
                f"{did_you_mean(part, known)}",
            ) from None
    return found


def is_path(text: str) -> bool:
    """Whether a text is the path of a file or folder, and not "package.module:attribute"."""
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
    """What a named factory is called with: its options, and of what is offered what it takes.

    Args:
      kind: what is named, for messages.
      name: as `resolve` took it.
      factory: what it returned; takes its arguments by keyword.
      options: given as they are.
      offered: given under the first of some names that the factory has an argument of, unless an
        option sets it.
      if_required: given to an argument of that name that has no default.
      key: what holds the name, for messages.
      options_key: what holds the options.

    Raises:
      UserError: for options that the factory does not take, and for arguments that are missing.
    """
    try:
        signature = _signature(factory)
    except (TypeError, ValueError) as error:
        reason = f"which cannot be called: {error}"
        raise WrongValue(key, f'names the {kind} "{name}", {reason}') from error
    parameters = signature.parameters
    given = dict(options)
    any_option = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for option in given:
        if option not in parameters and not any_option:
            raise WrongValue(
                f"{options_key}.{option}",
                f"is no argument of {name}: {did_you_mean(option, parameters)}",
            )
    for synonyms, value in offered.items():
        taken = next((name for name in synonyms if name in parameters), None)
        if taken is not None:
            given.setdefault(taken, value)
    for argument, value in if_required.items():
        if argument in parameters and parameters[argument].default is inspect.Parameter.empty:
            given.setdefault(argument, value)
    try:
        signature.bind(**given)
    except TypeError as error:
        reason = f"which is {error}; set it in {options_key}"
        raise WrongValue(key, f'names the {kind} "{name}", {reason}') from error
    return given


def make_importable(folder: pathlib.Path) -> None:
    """Lets modules in a folder be found, behind all others, here and in processes started later."""
    place = str(folder.resolve())
    for path in (sys.path, inherited := os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        if place not in path:
            path.append(place)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, inherited))


def name_of(kind: str, value: str | Callable[..., Any]) -> str:
    """Returns the name that `resolve` finds something by: a name is its own.

    What is defined in a notebook or a script is "__main__:attribute", which is found as long as
    that runs, and by no other process.

    Args:
      kind: what is named, for messages.
      value: a name, or a function or class at the top of a module.

    Raises:
      UserError: for what has no name, as a lambda, or what a function returned.
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


def _signature(factory: Callable[..., Any]) -> inspect.Signature:
    """As `inspect.signature`, also of classes whose metaclass hides it, as those of Flax NNX."""
    if isinstance(factory, functools.partial):

        def signed() -> None:
            """Is never called: it lends its signature to `functools.partial`."""

        signed.__signature__ = _signature(factory.func)  # pyright: ignore[reportFunctionMemberAccess]
        return inspect.signature(functools.partial(signed, *factory.args, **factory.keywords))
    if not isinstance(factory, type):
        return inspect.signature(factory)
    _, *parameters = inspect.signature(factory.__init__).parameters.values()
    return inspect.Signature(parameters)


def _why(module: str, error: BaseException) -> str:
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing and (module == missing or module.startswith(f"{missing}.")):
        return f'there is no module "{missing}" on the path; set PYTHONPATH to the folder it is in'
    return f"{module} cannot be imported: {type(error).__name__}: {error}"


def closest_match(name: str, known: Iterable[str]) -> str | None:
    """Returns the known name that `name` may well have been meant to be; None if none is near."""
    return next(iter(difflib.get_close_matches(name, list(known), 1)), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns 'did you mean "x"?' where a known name is near, else the list of known names."""
    known = list(known)
    if near := closest_match(name, known):
        return f'did you mean "{near}"?'
    return f"there are: {', '.join(known)}" if known else "there are none"
