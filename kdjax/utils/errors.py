"""The exceptions that are not faults of the program."""

# What a user's code can raise. `sys.exit(0)` in a config or a factory is a mistake too, since it
# would end the command with status 0 and nothing done.
RAISED_BY_USERS = (Exception, SystemExit)


class UserError(Exception):
    """A mistake in a config, a path or an input file.

    Its message is one line that names what is wrong and what would be right. The commands print it
    without a traceback and exit with status 2.
    """


class WrongValue(UserError):
    """A wrong value of a config.

    Attributes:
      key: The key of the value, such as `config.optimizer.momentum`.
      problem: The message without the key.
    """

    def __init__(self, key: str, problem: str):
        super().__init__(f"{key} {problem}")
        self.key = key
        self.problem = problem


class Preempted(Exception):
    """The run was asked to stop. The message says where its work is saved."""


class Transient(Exception):
    """A failure that the next attempt may not meet, such as a store that does not answer.

    The message is one line. The commands exit with status 75.
    """
