"""The command `kdjax`: `kdjax train ...` is the same as `python -m kdjax.train ...`."""

import ast
import os
import pathlib
import runpy
import sys

import kdjax
from kdjax import interrupt
from kdjax.names import did_you_mean

# In the order in which one needs them.
COMMANDS = (
    "prepare",
    "train",
    "compare",
    "evaluate",
    "predict",
    "export",
    "bench",
    "convert",
    "plan",
)


def main() -> None:
    """Runs the command that the first word names; without one, lists them."""
    words = sys.argv[1:] or ["--help"]
    name = words[0]
    if name in ("--help", "-h", "help"):
        print(_overview())
        return
    if name == "--version":
        print(kdjax.__version__)
        return
    if name not in COMMANDS:
        sys.stderr.write(f'kdjax: error: "{name}" is no command: {did_you_mean(name, COMMANDS)}\n')
        sys.exit(2)
    interrupt.end_at_once()
    # As `python -m` does it: what is in the working directory can be imported.
    if os.getcwd() not in sys.path and not sys.flags.safe_path:
        sys.path.insert(0, os.getcwd())
    sys.argv[1:] = words[1:]
    # The module becomes `__main__` and `sys.argv[0]`, so what asks for the command's name, as the
    # report does, finds the same.
    runpy.run_module(f"kdjax.{name}", run_name="__main__", alter_sys=True)


def _overview() -> str:
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
            "To begin, in three minutes and with nothing to download:",
            "kdjax compare --config quickstart.py --workdir runs/quickstart",
        ]
    )


def _first_line(name: str) -> str:
    """What the command says of itself, read and not imported, which would take seconds."""
    source = pathlib.Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


if __name__ == "__main__":
    main()
