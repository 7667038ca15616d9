"""The one exception that stands for a mistake of the user rather than of the program."""


class UserError(Exception):
    """A mistake in a config, a path or an input file.

    Its message is one line that names what is wrong and what would be right. The commands print it
    without a traceback and exit with status 2.
    """
