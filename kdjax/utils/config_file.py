"""Reads the file that `--config` names; what is wrong in it is one message with its line there."""

import ast
import difflib
import importlib.util
import inspect
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from types import ModuleType
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from kdjax.utils import files, imports
from kdjax.utils.errors import RAISED_BY_USERS, UserError
from kdjax.utils.schema import KINDS, WrongValue

FUNCTION = "get_config"
_OWN = "configs"
# Names of configs share most of their words: with less, that of one set is taken for another's.
_LIKENESS = 0.85
_MODULE = "config_file"
# What ml_collections says of a value of another type, and of a key that there is not.
_OTHER_TYPE = re.compile(
    r"Could not override field '(.*?)' \(reference\)\. (.*) is of original type .*"
    r" to type <class '(?:.*\.)?(\w+)'>",
    re.DOTALL,
)
_NO_KEY = re.compile(r"""['"]?Key "(.*?)" does not exist and cannot be added""")
_MEANT = re.compile(r'Did you mean "(.*?)"')


def read(text: str) -> ConfigDict:
    """Runs a config file and returns what its `get_config` returns.

    Modules beside the file and in the working directory can be imported from then on.

    Args:
      text: the path, as `find` takes it; behind a colon, the argument of `get_config`.

    Raises:
      UserError: when the file cannot be read or run, or makes no config; naming the file, the line,
        and what would be right.
    """
    named, colon, argument = text.partition(":")
    path = find(named)
    # The user's own modules, which the config names, may lie beside it or where the command runs.
    for folder in (pathlib.Path(path).parent, pathlib.Path()):
        imports.make_importable(folder)
    try:
        module = _run(path)
    except RAISED_BY_USERS as error:
        raise UserError(_explanation(path, error)) from error
    function = getattr(module, FUNCTION, None)
    if not callable(function):
        raise UserError(f"{path}: defines no {FUNCTION}()")
    arguments = (argument,) if colon else ()
    signature = inspect.signature(function)
    try:
        signature.bind(*arguments)
    except TypeError as error:
        right = (
            f'leave out ":{argument}"'
            if colon
            else f"give one behind a colon, as --config {path}:{next(iter(signature.parameters))}"
        )
        where = _place(path, _definition(_tree(path)))
        raise UserError(f"{where}{FUNCTION}{signature}: {error}; {right}") from error
    try:
        config = function(*arguments)
    except RAISED_BY_USERS as error:
        raise UserError(_explanation(path, error)) from error
    if not isinstance(config, ConfigDict):
        found = "nothing" if config is None else f"a {type(config).__name__}"
        raise UserError(
            f'{_place(path, _end(_tree(path)))}{FUNCTION}() returns {found}; end it in "return '
            'config", with one that kdjax.config.default() made'
        )
    return config


def find(path: str) -> str:
    """Returns the config file that a path names.

    Where nothing is there, one of kdjax's own: `quickstart.py` and `configs/quickstart.py` name the
    same in every folder.

    Raises:
      UserError: for a folder, and where there is neither; then with the nearest of kdjax's own.
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


def located(error: WrongValue) -> UserError:
    """The error of a config that a flag names, with the line that sets the value if no flag does.

    That of anything else, as of a workdir's config, comes back as it is.
    """
    section, _, key = error.key.partition(".")
    if section != "config" or section not in flags.FLAGS:
        return error
    parsed: Any = flags.FLAGS[section]
    if not parsed.present or key in parsed.override_values:
        return error
    return UserError(f"{place(parsed.config_filename, error.key)}{error}")


def place(text: str, key: str) -> str:
    """Where a file sets a key, `configs/x.py, line 7: `; where it returns, if it does not.

    Args:
      text: the path, as `read` takes it.
      key: as `config.optimizer.momentum`.
    """
    path = find(text.partition(":")[0])
    tree, parts = _tree(path), key.split(".")[1:]
    for length in range(len(parts), 0, -1):
        wanted = parts[:length]
        lines = [line for names, line in _settings(tree) if wanted[-len(names) :] == names]
        if lines:
            return _place(path, max(lines))
    return _place(path, _end(tree))


def _run(path: str) -> ModuleType:
    loader = SourceFileLoader(_MODULE, path)
    spec = importlib.util.spec_from_loader(_MODULE, loader)
    assert spec is not None
    # Where what the file defines, as a dataclass, looks for its module.
    sys.modules[_MODULE] = module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def _explanation(path: str, error: BaseException) -> str:
    """Returns one line on an error, with the frames that lie in the file."""
    if isinstance(error, SyntaxError) and error.filename and _same(error.filename, path):
        return f"{_place(path, error.lineno)}{error.msg}: {(error.text or '').strip()}"
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if _same(frame.filename, path)
    ]
    if not frames:
        return f"{path}: {_words(error)}"
    passed = ", ".join(f"line {frame.lineno} in {frame.name}" for frame in frames)
    told = f" ({passed})" if len(frames) > 1 else ""
    return f"{_place(path, frames[-1].lineno)}{_words(error)}{told}"


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


def _place(path: str, line: int | None) -> str:
    return f"{path}, line {line}: " if line else f"{path}: "


def _same(one: str, other: str) -> bool:
    return os.path.abspath(one) == os.path.abspath(other)


def _tree(path: str) -> ast.Module:
    return ast.parse(pathlib.Path(path).read_bytes())


def _settings(tree: ast.Module) -> Iterator[tuple[list[str], int]]:
    """What a file gives a value: the names that lead there, and the line.

    These are the target of an assignment without its variable, `["optimizer", "momentum"]` of
    `config.optimizer.momentum = 2`, and the single name of a keyword argument or a key in a dict.
    """
    for node in ast.walk(tree):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign | ast.Delete):
            targets = node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        for target in targets:
            parts = target.elts if isinstance(target, ast.Tuple) else [target]
            for part in parts:
                if names := _chain(part):
                    yield names, part.lineno
        if isinstance(node, ast.keyword) and node.arg:
            yield [node.arg], node.value.lineno
        elif isinstance(node, ast.Dict):
            for key in node.keys:
                if isinstance(key, ast.Constant):
                    yield [str(key.value)], key.lineno


def _chain(node: ast.expr) -> list[str]:
    """The names behind the variable, of attributes or constant subscripts."""
    if isinstance(node, ast.Attribute):
        return [*_chain(node.value), node.attr]
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        return [*_chain(node.value), str(node.slice.value)]
    return []


def _definition(tree: ast.Module) -> int | None:
    """The line that begins `get_config`; None where it comes from another file."""
    found = _function(tree)
    return found and found.lineno


def _end(tree: ast.Module) -> int | None:
    """The line where `get_config` returns, else where it begins."""
    found = _function(tree)
    if found is None:
        return None
    returns = [node.lineno for node in ast.walk(found) if isinstance(node, ast.Return)]
    return max(returns, default=found.lineno)


def _function(tree: ast.Module) -> Any:
    found = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == FUNCTION]
    return found[-1] if found else None
