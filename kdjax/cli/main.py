"""The entry point of the commands: `kdjax train ...`, or `python -m kdjax train ...`."""

import ast
import importlib
import os
import pathlib
import sys
from typing import NamedTuple

import kdjax
from kdjax.utils import interrupt
from kdjax.utils.imports import did_you_mean


class Command(NamedTuple):
    """The properties of a command that `command.run` needs before it imports its module.

    Attributes:
      extras: the optional dependencies of `pyproject.toml` that the command needs.
      words: the number of words that the command takes in addition to its flags.
      resumes: True if the same command continues what an earlier one did not finish.
    """

    extras: tuple[str, ...] = ()
    words: int = 0
    resumes: bool = False


# In the order in which a user needs them. Each is the module of the same name in this package.
COMMANDS = {
    "prepare": Command(("data",), words=1),
    "train": Command(("data", "report"), resumes=True),
    "compare": Command(("data", "report"), resumes=True),
    "evaluate": Command(("data",)),
    "predict": Command(("report",)),
    "label": Command(("report",), resumes=True),
    "export": Command(("data",)),
    "bench": Command(words=1),
    "convert": Command(("convert",)),
    "plan": Command(),
}


def main() -> None:
    """Runs the command that the first word names, or lists the commands if there is none."""
    interrupt.end_at_once()
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h", "help"):
        print(overview())
        return
    if name == "--version":
        print(kdjax.__version__)
        return
    if name not in COMMANDS:
        sys.stderr.write(
            f'kdjax: error: unknown command "{name}": {did_you_mean(name, COMMANDS)}\n'
        )
        sys.exit(2)
    # As `python -m` does, so that modules in the working directory can be imported.
    if os.getcwd() not in sys.path and not sys.flags.safe_path:
        sys.path.insert(0, os.getcwd())
    # Imported here, so that Ctrl-C during the import of a library prints one line.
    from kdjax.cli import command

    sys.argv = [f"kdjax {name}", *rest]
    extras, words, resumes = COMMANDS[name]
    try:
        module = importlib.import_module(f"kdjax.cli.{name}")
    except ModuleNotFoundError as error:
        if (line := command.advice(extras, error)) is None:
            raise
        command.fail(sys.argv[0], line)
    command.run(module.main, module.__doc__, extras=extras, words=words, resumes=resumes)


def overview() -> str:
    """Returns what `kdjax --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {_first_line(name)}" for name in COMMANDS]
    return "\n".join(
        [
            f"{(kdjax.__doc__ or '').strip()}",
            "",
            "usage: kdjax COMMAND [--flag value ...]; kdjax COMMAND --help lists its flags",
            "",
            *lines,
            "",
            "To begin, in four minutes and with nothing to download:",
            "kdjax compare --config quickstart.py --workdir runs/quickstart",
        ]
    )


def _first_line(name: str) -> str:
    """Returns the first line of a command's docstring, without the slow import of its module."""
    source = pathlib.Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
