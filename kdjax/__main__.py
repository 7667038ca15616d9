"""Runs `python -m kdjax COMMAND`."""

from kdjax.cli.main import main

if __name__ == "__main__":
    main()
