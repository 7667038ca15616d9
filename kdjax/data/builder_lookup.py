"""Finds the builders of data sets, a folder and a file each."""

import functools
import importlib.util
import pathlib

from tensorflow_datasets.core import registered

from kdjax.builders import builders_root
from kdjax.data.builder import SegmentationBuilder
from kdjax.errors import UserError
from kdjax.suggest import nearest


def find_builder(name: str) -> type[SegmentationBuilder]:
    """Returns the builder of a data set.

    Raises:
        UserError: there is none of that name, or no folder of builders.
    """
    root = builders_root()
    if not root.is_dir():
        raise UserError(
            f"no folder of data set builders at {root}; set KDJAX_DATASETS to the `datasets` "
            "folder of a kdjax checkout"
        )
    known = sorted(
        path.parent.name for path in root.glob("*/*.py") if path.stem == path.parent.name
    )
    if name not in known:
        raise UserError(f"unknown data set {name!r}: {nearest(name, known)}")
    return _load_builder(root / name / f"{name}.py")


@functools.cache
def _load_builder(path: pathlib.Path) -> type[SegmentationBuilder]:
    """Loads a builder by its path: `datasets` is not a package, so as not to hide another one."""
    spec = importlib.util.spec_from_file_location(f"kdjax_datasets_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # TFDS keeps one registry of names, in which ours might meet its own.
    with registered.skip_registration():
        spec.loader.exec_module(module)
    for value in vars(module).values():
        if (
            isinstance(value, type)
            and value.__module__ == module.__name__
            and issubclass(value, SegmentationBuilder)
        ):
            return value
    raise TypeError(f"{path} defines no SegmentationBuilder")
