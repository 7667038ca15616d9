"""Reads the file that `--config` names. A mistake in it becomes one message with its line."""

import difflib
import importlib.util
import inspect
import os
import pathlib
import re
import sys
import traceback
from importlib.machinery import SourceFileLoader
from types import ModuleType

from ml_collections import ConfigDict

from kdjax.utils import files, imports
from kdjax.utils.errors import RAISED_BY_USERS, UserError
from kdjax.utils.schema import KINDS

FUNCTION = "get_config"
_OWN = "configs"
# Names of configs share most of their words, so that a lower value suggests unrelated configs.
_LIKENESS = 0.85
_MODULE = "config_file"
# The errors of ml_collections for a value of another type, and for an unknown key.
_OTHER_TYPE = re.compile(
    r"Could not override field '(.*?)' \(reference\)\. (.*) is of original type .*"
    r" to type <class '(?:.*\.)?(\w+)'>",
    re.DOTALL,
)
_NO_KEY = re.compile(r"""['"]?Key "(.*?)" does not exist and cannot be added""")
_MEANT = re.compile(r'Did you mean "(.*?)"')


def read(text: str) -> ConfigDict:
    """Runs a config file and returns the result of its `get_config`, locked.

    Modules next to the file and in the working directory can be imported afterwards.

    Args:
      text: the path, as `find` takes it, and the argument of `get_config` after a colon.

    Raises:
      UserError: if the file cannot be read or run, or returns no config. The message names the
        file, the line, and what would be right.
    """
    named, colon, argument = text.partition(":")
    path = find(named)
    for folder in (pathlib.Path(path).parent, pathlib.Path()):
        imports.make_importable(folder)
    try:
        function = getattr(_run(path), FUNCTION, None)
    except RAISED_BY_USERS as error:
        raise UserError(_explanation(path, error)) from error
    if not callable(function):
        raise UserError(f"{path}: defines no {FUNCTION}()")
    arguments = (argument,) if colon else ()
    signature = inspect.signature(function)
    try:
        signature.bind(*arguments)
    except TypeError as error:
        first = next(iter(signature.parameters), "")
        right = f'leave out ":{argument}"' if colon else f"give it as --config {path}:{first}"
        raise UserError(f"{path}: {FUNCTION}{signature}: {error}; {right}") from error
    try:
        config = function(*arguments)
    except RAISED_BY_USERS as error:
        raise UserError(_explanation(path, error)) from error
    if not isinstance(config, ConfigDict):
        found = "nothing" if config is None else f"a {type(config).__name__}"
        raise UserError(
            f'{path}: {FUNCTION}() returns {found}; end it in "return config", with a config that '
            "kdjax.default_config() made"
        )
    return config.lock()


def find(path: str) -> str:
    """Returns the config file that a path names.

    If there is no such file, `quickstart.py` and `configs/quickstart.py` name kdjax's own file in
    every working directory.

    Raises:
      UserError: for a folder or an unknown file. The message names the nearest of kdjax's own.
    """
    if os.path.isdir(path):
        raise UserError(f"{path}: this is a folder; name a config file")
    if os.path.exists(path):
        return path
    own = files.shipped_folder(_OWN)
    stems = sorted(file.stem for file in own.glob("*.py"))
    folder, name = os.path.split(path)
    stem = name.removesuffix(".py")
    if folder in ("", _OWN) and stem != name and stem in stems:
        return str(own / name)
    near = difflib.get_close_matches(stem, stems, 1, _LIKENESS)
    meant = f'did you mean kdjax\'s "{near[0]}.py"?' if near else f"kdjax's own lie in {own}"
    raise UserError(f"{path}: no such config file; {meant}")


def _run(path: str) -> ModuleType:
    loader = SourceFileLoader(_MODULE, path)
    spec = importlib.util.spec_from_loader(_MODULE, loader)
    assert spec is not None
    # Dataclasses that the file defines look for their module there.
    sys.modules[_MODULE] = module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def _explanation(path: str, error: BaseException) -> str:
    """Returns one line on an error, with the lines of the file that led to it."""
    if isinstance(error, SyntaxError) and error.filename and _same(error.filename, path):
        return f"{path}, line {error.lineno}: {error.msg}: {(error.text or '').strip()}"
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if _same(frame.filename, path)
    ]
    if not frames:
        return f"{path}: {_words(error)}"
    passed = ", ".join(f"line {frame.lineno} in {frame.name}" for frame in frames)
    told = f" ({passed})" if len(frames) > 1 else ""
    return f"{path}, line {frames[-1].lineno}: {_words(error)}{told}"


def _words(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, UserError):
        return text
    if wrong := _OTHER_TYPE.match(text):
        key, value, kind = wrong.groups()
        right = {kind.__name__: words for kind, words in KINDS.items()}.get(
            kind, "a section; set the keys inside it"
        )
        return f"{key} is {value}; it must be {right}"
    if missing := _NO_KEY.match(text):
        meant = _MEANT.search(text)
        right = (
            f'did you mean "{meant[1]}"?'
            if meant
            else 'names of your own are added inside "with config.unlocked():"'
        )
        return f'there is no key "{missing[1]}": {right}'
    return f"{type(error).__name__}: {text}"


def _same(one: str, other: str) -> bool:
    return os.path.abspath(one) == os.path.abspath(other)
