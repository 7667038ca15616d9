"""Runs a command: a mistake of the user becomes one line on stderr and exit status 2."""

import errno
import logging
import math
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags
from absl import logging as absl_logging

from kdjax import config_file, extras, processes, strays
from kdjax.errors import Preempted, Transient, UserError
from kdjax.paths import may_pass
from kdjax.ranges import WrongValue

# What a disk says that is full or may not be written to,
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
# and what a path says that can be none: a folder for a file, or the reverse; too long a name.
_PATH = (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)

# A command imports this file before what an extra brings.
extras.explain_imports()


def run(main: Callable[[list[str]], None], *, words: int = 0, resumes: bool = False) -> None:
    """Parses the flags, calls `main` with the remaining words, and exits.

    Args:
      main: the command, called as `main([program, word, ...])`.
      words: how many words it takes beside the flags; more are a mistake.
      resumes: whether the same command continues what an earlier one did not finish.

    Exit status: 0 when the work was done, 2 for a mistake of the user, 1 for a fault of kdjax, 75
    when it is to be started again: it was asked to stop and has saved what it had done, another
    process of the run died, or a store did not answer.
    """
    name = "kdjax." + os.path.splitext(os.path.basename(sys.argv[0]))[0]
    # Libraries report progress and failures with tracebacks; what a user needs, kdjax prints.
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("jax").setLevel(logging.ERROR)
    held_back = strays.hold_back()
    if resumes:
        processes.end_when_asked(name)
    processes.end_with_parent()

    def guarded(argv: list[str]) -> None:
        try:
            main(argv)
            # The work is done all the same, but perhaps not what a library does beside it.
            for last in dict.fromkeys(stray.splitlines()[-1] for stray in held_back):
                print(f"{name}: in the background: {last}", file=sys.stderr)
            processes.leave(0)
        except Preempted as error:
            print(f"{name}: stopped as asked: {error}", file=sys.stderr)
            processes.leave(processes.AGAIN)
        except KeyboardInterrupt:
            print(f"\n{name}: interrupted", file=sys.stderr)
            processes.leave(130)
        except (UserError, Transient) as error:
            # Found while it was at work, as that a data set's module is not there.
            told = config_file.located(error) if isinstance(error, WrongValue) else error
            line = _error_line(name, str(told))
            processes.fail(2 if isinstance(error, UserError) else processes.AGAIN, line)
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (*_DISK, *_PATH):
                where = error.filename or "cannot write"
                processes.fail(2, _error_line(name, f"{where}: {error.strerror}"))
            if isinstance(error, OSError) and may_pass(error):
                processes.fail(processes.AGAIN, _error_line(name, str(error)))
            if isinstance(error, ModuleNotFoundError) and (line := extras.advice(name, error)):
                processes.fail(2, _error_line(name, line))
            # They may be its cause.
            processes.fail(1, *held_back, traceback.format_exc())

    app.run(guarded, flags_parser=lambda argv: _parse(name, argv, words))


def _parse(name: str, argv: list[str], words: int) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        _fail(name, f"{error}; see --help")
    except UserError as error:
        _fail(name, str(error))
    # The config library reports an unknown key by the error of the access that failed.
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        _fail(name, f"in --config: {error.args[0] if error.args else error}")
    _check_given(name)
    if strays := rest[1 + words :]:
        more = f" and {len(strays) - 1} more" if len(strays) > 1 else ""
        _fail(
            name,
            f'"{strays[0]}"{more} belongs to no flag: a flag takes one word (put a pattern with * '
            "in quotes), and one that is true or false takes that behind =, as --flag=false",
        )
    return rest


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
