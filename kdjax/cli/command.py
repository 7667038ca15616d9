"""Runs a command: a mistake of the user becomes one line on stderr and exit status 2."""

import contextlib
import errno
import logging
import math
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, NoReturn

from absl import app, flags
from absl import logging as absl_logging

from kdjax.utils import interrupt, processes
from kdjax.utils.errors import Preempted, Transient, UserError
from kdjax.utils.files import may_pass

# How the config library names a key that it does not have, and the one that may have been meant.
_QUOTED, _MEANT = re.compile(r"'(\w+)\\?'"), re.compile(r'Did you mean "(\w+)"')
# How Abseil names a required flag that is not given.
_MISSING = re.compile(r"Flag (--\w+) must have a value other than None")
# What a disk says that is full or may not be written to,
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
# and what a path says that can be none: a folder for a file, or the reverse; too long a name.
_PATH = (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)


def run(
    main: Callable[[list[str]], None],
    about: str | None = None,
    *,
    extras: Sequence[str] = (),
    words: int = 0,
    resumes: bool = False,
) -> None:
    """Parses the flags, calls `main` with the remaining words, and exits.

    `sys.argv[0]` is the command as messages name it, such as "kdjax train".

    The exit status is

    * 0 if the work was done,
    * 1 for a fault of kdjax,
    * 2 for a mistake of the user,
    * 75 if the same command must be started again: the command was asked to stop and has saved its
      work, another process of the run died, or a store did not answer,
    * 130 for Ctrl-C if there was nothing to save.

    Args:
      main: the command, called as `main([program, word, ...])`.
      about: what `--help` prints before the flags.
      extras: the optional dependencies that the command needs.
      words: how many words the command takes in addition to its flags.
      resumes: True if the same command continues what an earlier one did not finish.
    """
    name = sys.argv[0]
    interrupt.end_at_once()
    absl_logging.set_verbosity(absl_logging.WARNING)
    held_back = hold_back()
    if resumes:
        processes.end_when_asked(name)
    processes.end_with_parent()

    def guarded(argv: list[str]) -> None:
        # What a training has to save, `kdjax.training.loop` saves.
        if not resumes:
            interrupt.raise_error()
        try:
            _call(main, argv)
            # The work is done all the same, but perhaps not what a library does beside it.
            for last in dict.fromkeys(text.splitlines()[-1] for text in held_back):
                print(f"{name}: in the background: {last}", file=sys.stderr)
            processes.leave(0)
        except Preempted as error:
            print(f"{name}: stopped as asked: {error}", file=sys.stderr)
            processes.leave(processes.AGAIN)
        except KeyboardInterrupt:
            print(f"\n{name}: interrupted", file=sys.stderr)
            processes.leave(interrupt.STATUS)
        except (UserError, Transient) as error:
            # Found while it was at work, as that a data set's module is not there.
            line = _error_line(name, str(error))
            processes.fail(2 if isinstance(error, UserError) else processes.AGAIN, line)
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (*_DISK, *_PATH):
                where = error.filename or "cannot write"
                processes.fail(2, _error_line(name, f"{where}: {error.strerror}"))
            if isinstance(error, OSError) and may_pass(error):
                processes.fail(processes.AGAIN, _error_line(name, str(error)))
            if isinstance(error, ModuleNotFoundError) and (line := advice(extras, error)):
                processes.fail(2, _error_line(name, line))
            # They may be its cause.
            processes.fail(1, *held_back, traceback.format_exc())

    app.run(guarded, flags_parser=lambda argv: _parse(name, argv, words, about))


def _call(main: Callable[[list[str]], None], argv: list[str]) -> None:
    """Calls a command.

    Raises:
      UserError: when a user's own code, which the command runs, exits.
    """
    try:
        main(argv)
    except SystemExit as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"{place.filename}, line {place.lineno}: {place.line} ends the command before its work "
            "is done; return, or raise an error"
        ) from error


def _parse(name: str, argv: list[str], words: int, about: str | None) -> list[str]:
    if {"--help", "-h"} & {*argv}:
        print(overview(about))
        sys.exit(0)
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        if missing := _MISSING.findall(str(error)):
            is_or_are = "is" if len(missing) == 1 else "are"
            _fail(name, f"{' and '.join(missing)} {is_or_are} missing; see --help")
        _fail(name, f"{error}; see --help")
    except UserError as error:
        _fail(name, str(error))
    # The config library reports an unknown key by the error of the access that failed.
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        _fail(name, _unknown_key(str(error.args[0] if error.args else error), argv))
    _check_given(name)
    if extra := rest[1 + words :]:
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        _fail(
            name,
            f'"{extra[0]}"{more} belongs to no flag: a flag takes one word (put a pattern with * '
            "in quotes), and one that is true or false takes that behind =, as --flag=false",
        )
    return rest


def overview(about: str | None) -> str:
    """Returns what `--help` prints: the command's docstring, and a line for each of its flags.

    Abseil's own `--helpfull` also lists the flags of the libraries.
    """
    modules = flags.FLAGS.flags_by_module_dict()
    own = {
        flag.name: flag
        for module, defined in modules.items()
        if module == sys.argv[0] or module.startswith("kdjax.")
        for flag in defined
        # The same with dashes for underscores.
        if "-" not in flag.name
    }
    width = max(map(len, own))
    lines = [f"  --{name:{width}}  {_told(flag)}" for name, flag in own.items()]
    return "\n".join(
        [(about or "").strip(), "", *lines, "", "--helpfull lists the flags of libraries too."]
    )


def _told(flag: flags.Flag[Any]) -> str:
    """What a flag is for, and its default, without what Abseil adds to one that may be repeated."""
    purpose = (flag.help or "").partition(";\n")[0]
    if not flag.default:
        return purpose
    shown = ",".join(flag.default) if isinstance(flag.default, list) else flag.default
    return f"{purpose} [{shown}]"


def _unknown_key(said: str, argv: list[str]) -> str:
    """What the config library says of a flag of --config, with the flag and in words."""
    quoted = _QUOTED.search(said)
    if not quoted:
        return f"in --config: {said}"
    key = quoted[1]
    flag = next((word for word in argv if f".{key}" in word.partition("=")[0]), "--config")
    where = f'in --config: {flag.partition("=")[0]}: there is no "{key}"'
    if meant := _MEANT.search(said):
        return f'{where}. Did you mean "{meant[1]}"?'
    return f"{where}; what has a name of its own, as a term, is added in the config file"


def _check_given(name: str) -> None:
    """Refuses what no flag means: nothing, as a variable of the shell that is not set, or NaN."""
    for key in flags.FLAGS:
        flag = flags.FLAGS[key]
        # Keys of a config may be empty, and are checked with it.
        if not flag.present or key.startswith("config"):
            continue
        if flag.value == "":
            _fail(name, f"--{key} is empty; give it a value, or leave it out")
        if isinstance(flag.value, float) and not math.isfinite(flag.value):
            _fail(name, f"--{key} is {flag.value}; it takes a finite number")


def _fail(name: str, message: str) -> NoReturn:
    sys.stderr.write(_error_line(name, message))
    sys.exit(2)


def _error_line(name: str, message: str) -> str:
    return f"{name}: error: {' '.join(message.split())}\n"


# What TensorStore answers about the other files when Orbax has given up on one of them, and what it
# says again of those that are damaged, which whoever read them has reported.
_LATE_ANSWERS = re.compile(r"Event loop is closed|DATA_LOSS|[A-Z_]+: Error (opening|reading) ")


def hold_back() -> list[str]:
    """Keeps libraries' tracebacks from stderr, for as long as the process lives.

    Where a disk fills up or a checkpoint is damaged, Orbax, TensorStore, asyncio and TensorBoard's
    writer each report it, in dozens of tracebacks around the one line that kdjax makes of it. What
    libraries log without one is heard.

    Returns:
      Their tracebacks, to which those that are still to come are added.
    """
    tracebacks: list[str] = []

    # Formatted at once: whoever keeps the error keeps alive what is just being deleted.
    def keep(
        kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not _LATE_ANSWERS.match(str(error)):
            tracebacks.append("".join(traceback.format_exception(kind, error, trace)))

    def is_heard(record: logging.LogRecord) -> bool:
        if not record.exc_info or record.exc_info[0] is None:
            return True
        keep(*record.exc_info)
        return False

    # Through which all that libraries log comes.
    absl_logging.get_absl_handler().addFilter(is_heard)
    sys.unraisablehook = lambda args: keep(args.exc_type, args.exc_value, args.exc_traceback)
    threading.excepthook = lambda args: keep(args.exc_type, args.exc_value, args.exc_traceback)
    # What Orbax would have written next is never begun.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    return tracebacks


# Extra -> what its packages are imported as; see pyproject.toml.
MODULES = {
    "data": (
        "tensorflow",
        "tensorflow_datasets",
        "importlib_resources",
        "array_record",
        "PIL",
        "scipy",
        "matplotlib",
        "tqdm",
    ),
    "report": ("tensorboardX", "tqdm", "matplotlib", "jinja2", "PIL", "scipy"),
    "convert": ("safetensors",),
}


def advice(extras: Sequence[str], error: ImportError) -> str | None:
    """Returns one line that says what to install, or None if none of the extras has the module.

    Args:
      extras: those that the command needs. The line names all of them, so that one installation
        is enough.
      error: of an import anywhere in the command.
    """
    package = (error.name or "").partition(".")[0]
    if not any(package in MODULES[extra] for extra in extras):
        return None
    return f'{package} is not installed: pip install "kdjax[{",".join(extras)}]"'


@contextlib.contextmanager
def missing_extra_ends(name: str, extras: Sequence[str]) -> Iterator[None]:
    """Ends the command `name` with one line if an import inside the context lacks an extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (line := advice(extras, error)) is None:
            raise
        _fail(name, line)
