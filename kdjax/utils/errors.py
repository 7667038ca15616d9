"""The exceptions for mistakes of the user, stops on request, and failures that may pass."""

# Errors that a user's code can raise. `sys.exit(0)` in a config or a factory would otherwise end
# the command with status 0 and nothing done.
RAISED_BY_USERS = (Exception, SystemExit)


def first_line(error: BaseException) -> str:
    """Returns the first line of an error, or the name of its class if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class UserError(Exception):
    """A mistake in a config, a path, or an input file.

    The message is one line that names the mistake and the remedy. The commands print it without a
    traceback and exit with status 2.
    """


class WrongValue(UserError):
    """A wrong value of a config.

    Attributes:
      key: the key of the value, such as `config.optimizer.momentum`.
      problem: the message without the key.
    """

    def __init__(self, key: str, problem: str):
        super().__init__(f"{key} {problem}")
        self.key = key
        self.problem = problem


class Preempted(Exception):
    """The run was asked to stop and has saved its work. The message says where."""


class Transient(Exception):
    """A failure that may not happen again, such as a store that does not answer.

    The message is one line. The commands print it without a traceback and exit with status 75.
    """
