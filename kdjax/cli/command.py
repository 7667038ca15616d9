"""Runs a command: a mistake of the user becomes one line on stderr and exit status 2."""

import errno
import logging
import math
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import app, command_name, flags
from absl import logging as absl_logging

from kdjax.utils import interrupt, processes
from kdjax.utils.errors import Preempted, Transient, UserError
from kdjax.utils.files import may_pass

# Errors of a disk that is full or read-only, and of a path that cannot be a file.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
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
      about: the text that `--help` prints before the flags.
      extras: the optional dependencies that the command needs.
      words: the number of words that the command takes in addition to its flags.
      resumes: True if the same command continues what an earlier one did not finish.
    """
    name = sys.argv[0]
    interrupt.end_at_once()
    absl_logging.set_verbosity(absl_logging.WARNING)
    tracebacks = hold_back_tracebacks()
    if resumes:
        processes.end_when_asked(name)
    processes.end_with_parent()

    def guarded(argv: list[str]) -> None:
        # Abseil names the process after argv[0]. If the name holds a blank, Slurm cannot read
        # /proc/PID/stat, and its signals do not reach the process.
        command_name.set_kernel_process_name(name.replace(" ", "-"))
        # While there is something to save, `kdjax.training.loop` handles Ctrl-C.
        if not resumes:
            interrupt.raise_error()
        try:
            _call(main, argv)
            # The work is done, but a library may have failed in the background.
            for last in dict.fromkeys(text.splitlines()[-1] for text in tracebacks):
                print(f"{name}: in the background: {last}", file=sys.stderr)
            processes.leave(0)
        except Preempted as error:
            print(f"{name}: stopped as asked: {error}", file=sys.stderr)
            processes.leave(processes.AGAIN)
        except KeyboardInterrupt:
            print(f"\n{name}: interrupted", file=sys.stderr)
            processes.leave(interrupt.STATUS)
        except Exception as error:
            status, message = _explain(error, extras)
            if message is not None:
                processes.fail(status, _error_line(name, message))
            # The tracebacks of libraries may show the cause.
            processes.fail(status, *tracebacks, traceback.format_exc())

    app.run(guarded, flags_parser=lambda argv: _parse(name, argv, words, about))


def _call(main: Callable[[list[str]], None], argv: list[str]) -> None:
    """Calls a command.

    Raises:
      UserError: if a user's own code, which the command runs, exits.
    """
    try:
        main(argv)
    except SystemExit as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"{place.filename}, line {place.lineno}: {place.line} ends the command before its work "
            "is done; return, or raise an error"
        ) from error


def _explain(error: Exception, extras: Sequence[str]) -> tuple[int, str | None]:
    """Returns the exit status, and the message of an error that is no fault of kdjax."""
    if isinstance(error, UserError):
        return processes.MISTAKE, str(error)
    if isinstance(error, Transient) or (isinstance(error, OSError) and may_pass(error)):
        return processes.AGAIN, str(error)
    if isinstance(error, OSError) and error.errno in (*_DISK, *_PATH):
        return processes.MISTAKE, f"{error.filename or 'cannot write'}: {error.strerror}"
    if isinstance(error, ModuleNotFoundError) and (line := advice(extras, error)):
        return processes.MISTAKE, line
    return 1, None


def _parse(name: str, argv: list[str], words: int, about: str | None) -> list[str]:
    if {"--help", "-h"} & {*argv}:
        print(overview(about))
        sys.exit(0)
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        # How Abseil names a required flag that is not given.
        if missing := re.findall(r"Flag (--\w+) must have a value other than None", str(error)):
            is_or_are = "is" if len(missing) == 1 else "are"
            fail(name, f"{' and '.join(missing)} {is_or_are} missing; see --help")
        fail(name, f"{error}; see --help")
    except UserError as error:
        fail(name, str(error))
    # The config library reports an unknown key by the error of the access that failed.
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        fail(name, _unknown_key(str(error.args[0] if error.args else error), argv))
    _check_given(name)
    if extra := rest[1 + words :]:
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        fail(
            name,
            f'"{extra[0]}"{more} belongs to no flag: a flag takes one word (put a pattern with * '
            "in quotes), and a flag that is true or false takes it after =, as --flag=false",
        )
    return rest


def overview(about: str | None) -> str:
    """Returns what `--help` prints: the command's docstring, and a line for each of its flags.

    Abseil's own `--helpfull` also lists the flags of the libraries.
    """
    own = {
        flag.name: flag
        for module, defined in flags.FLAGS.flags_by_module_dict().items()
        if module == sys.argv[0] or module.startswith("kdjax.")
        for flag in defined
        # Abseil defines a second flag, with dashes for underscores.
        if "-" not in flag.name
    }
    width = max(map(len, own))
    lines = [f"  --{name:{width}}  {_describe(flag)}" for name, flag in own.items()]
    return "\n".join(
        [(about or "").strip(), "", *lines, "", "--helpfull lists the flags of libraries too."]
    )


def _describe(flag: flags.Flag[Any]) -> str:
    """Returns the purpose of a flag and its default."""
    # Abseil adds a line to a flag that may be repeated.
    purpose = (flag.help or "").partition(";\n")[0]
    if not flag.default:
        return purpose
    shown = ",".join(flag.default) if isinstance(flag.default, list) else flag.default
    return f"{purpose} [{shown}]"


def _unknown_key(text: str, argv: list[str]) -> str:
    """Returns the config library's message about a flag of --config, with the flag's name."""
    quoted = re.search(r"'(\w+)\\?'", text)
    if not quoted:
        return f"in --config: {text}"
    key = quoted[1]
    flag = next((word for word in argv if f".{key}" in word.partition("=")[0]), "--config")
    where = f'in --config: {flag.partition("=")[0]}: there is no "{key}"'
    if meant := re.search(r'Did you mean "(\w+)"', text):
        return f'{where}. Did you mean "{meant[1]}"?'
    return f"{where}; add a key of your own, such as the name of a term, in the config file"


def _check_given(name: str) -> None:
    """Refuses empty values, for instance from an unset shell variable, and NaN and infinity."""
    for key in flags.FLAGS:
        flag = flags.FLAGS[key]
        # Keys of a config may be empty, and are checked with it.
        if not flag.present or key.startswith("config"):
            continue
        if flag.value == "":
            fail(name, f"--{key} is empty; give it a value, or leave it out")
        if isinstance(flag.value, float) and not math.isfinite(flag.value):
            fail(name, f"--{key} is {flag.value}; it takes a finite number")


def fail(name: str, message: str) -> NoReturn:
    """Ends a command before its work begins."""
    sys.stderr.write(_error_line(name, message))
    sys.exit(processes.MISTAKE)


def _error_line(name: str, message: str) -> str:
    return f"{name}: error: {' '.join(message.split())}\n"


# TensorStore's reports about other files after Orbax has given up on one of them, and repeated
# reports about damaged files.
_LATE_ANSWERS = re.compile(r"Event loop is closed|DATA_LOSS|[A-Z_]+: Error (opening|reading) ")


def hold_back_tracebacks() -> list[str]:
    """Keeps tracebacks of libraries from stderr for the rest of the process.

    If a disk is full or a checkpoint is damaged, Orbax, TensorStore, asyncio, and TensorBoard's
    writer print dozens of tracebacks around kdjax's one line. Lines that libraries log without a
    traceback still appear.

    Returns:
      The tracebacks. Later tracebacks are added to this list.
    """
    tracebacks: list[str] = []

    def keep(error: Any) -> None:
        # Formatted at once, because a stored error would keep objects alive.
        if not _LATE_ANSWERS.match(str(error[1])):
            tracebacks.append("".join(traceback.format_exception(*error[:3])))

    def log_filter(record: logging.LogRecord) -> bool:
        if not record.exc_info or record.exc_info[0] is None:
            return True
        keep(record.exc_info)
        return False

    absl_logging.get_absl_handler().addFilter(log_filter)
    sys.unraisablehook = threading.excepthook = keep
    # Orbax never starts the writes after one that failed.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    return tracebacks


# The modules that each extra of pyproject.toml installs.
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
      extras: the extras that the command needs. The line names all of them.
      error: the error of an import anywhere in the command.
    """
    package = (error.name or "").partition(".")[0]
    if not any(package in MODULES[extra] for extra in extras):
        return None
    return f'{package} is not installed: pip install "kdjax[{",".join(extras)}]"'
