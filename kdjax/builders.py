"""Where the builders of data sets and their tables lie."""

import os
import pathlib

from kdjax import shipped


def builders_root() -> pathlib.Path:
    """The folder of builders, a folder each: what KDJAX_DATASETS names, or kdjax's own."""
    if named := os.environ.get("KDJAX_DATASETS"):
        return pathlib.Path(named)
    return shipped.folder("datasets")
