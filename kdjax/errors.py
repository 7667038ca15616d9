"""The exceptions that are no faults of the program: mistakes of the user, and being stopped."""


class UserError(Exception):
    """A mistake in a config, a path or an input file.

    Its message is one line that names what is wrong and what would be right. The commands print it
    without a traceback and exit with status 2.
    """


class Preempted(Exception):
    """The run was asked to stop, and what it had done is saved; its message says where."""
