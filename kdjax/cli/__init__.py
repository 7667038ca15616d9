"""From the words of a command line to a function: flags, and how a mistake becomes one line."""
