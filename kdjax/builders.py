"""Where the builders of data sets and their tables lie."""

import os
import pathlib


def builders_root() -> pathlib.Path:
    """The folder of builders, a folder each: what KDJAX_DATASETS names, or kdjax's own.

    That is `datasets/` of a checkout, which a wheel holds as `kdjax/datasets/`. A folder `datasets`
    beside an installed package belongs to HuggingFace's, and is never looked into.
    """
    if named := os.environ.get("KDJAX_DATASETS"):
        return pathlib.Path(named)
    package = pathlib.Path(__file__).resolve().parent
    own, checkout = package / "datasets", package.parent
    if not own.is_dir() and (checkout / "pyproject.toml").is_file():
        return checkout / "datasets"
    return own
