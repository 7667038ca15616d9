"""Folders of the repository that a wheel holds inside the package."""

import pathlib


def folder(name: str) -> pathlib.Path:
    """Where `name`, as "datasets" or "configs", lies: in the package, or in the checkout around it.

    A folder of that name beside an installed package is somebody else's, as `datasets` is that of
    HuggingFace, and is never looked into.
    """
    package = pathlib.Path(__file__).resolve().parent
    own, checkout = package / name, package.parent
    if not own.is_dir() and (checkout / "pyproject.toml").is_file():
        return checkout / name
    return own
