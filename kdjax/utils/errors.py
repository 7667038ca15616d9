"""The exceptions that are no faults of the program: mistakes, being stopped, bad luck."""

# What code of the user's can raise. `sys.exit(0)` in a config or a factory is a mistake too: it
# would end the command with status 0 and nothing done.
RAISED_BY_USERS = (Exception, SystemExit)


class UserError(Exception):
    """A mistake in a config, a path or an input file.

    Its message is one line that names what is wrong and what would be right. The commands print it
    without a traceback and exit with status 2.
    """


class Preempted(Exception):
    """The run was asked to stop, and what it had done is saved; its message says where."""


class Transient(Exception):
    """What may well work at the next try: a store that is away, a clock that jumped.

    Its message is one line, as a `UserError`'s; the commands exit with status 75.
    """
