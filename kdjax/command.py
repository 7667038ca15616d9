"""Runs a command: a mistake of the user becomes one line on stderr and exit status 2."""

import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags
from absl import logging as absl_logging

from kdjax.errors import UserError


def run(main: Callable[[list[str]], None]) -> None:
    """Parses the flags, calls `main` with the remaining arguments, and exits.

    Exit status: 0 when the work was done, 2 for a mistake of the user, 1 for a fault of kdjax.
    """
    name = "kdjax." + os.path.splitext(os.path.basename(sys.argv[0]))[0]
    # Libraries report their progress at level INFO; what a user needs, kdjax prints itself.
    absl_logging.set_verbosity(absl_logging.ERROR)
    logging.getLogger("jax").setLevel(logging.ERROR)

    def guarded(argv: list[str]) -> None:
        try:
            main(argv)
        except UserError as error:
            _fail(name, str(error))
        except KeyboardInterrupt:
            print(f"\n{name}: interrupted", file=sys.stderr)
            sys.exit(130)

    app.run(guarded, flags_parser=lambda argv: _parse(name, argv))


def _parse(name: str, argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        _fail(name, f"{error}; see --help")
    except UserError as error:
        _fail(name, str(error))
    # The config library reports an unknown key by the error of the access that failed.
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        _fail(name, f"in --config: {error.args[0] if error.args else error}")


def _fail(name: str, message: str) -> NoReturn:
    print(f"{name}: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
