"""Versions of what is installed, for what is written beside results."""

import contextlib
import importlib.metadata

import kdjax


def versions(*packages: str) -> dict[str, str]:
    """The versions of kdjax and of some packages, as far as they are installed."""
    found = {"kdjax": kdjax.__version__}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
