"""Loads the builders of data sets, a folder and a file each."""

import functools
import importlib.util
import pathlib

from tensorflow_datasets.core import registered

from kdjax.builders import builder_folder
from kdjax.data.builder import SegmentationBuilder
from kdjax.errors import UserError


def find_builder(name: str) -> type[SegmentationBuilder]:
    """Returns the builder of a data set.

    Raises:
        UserError: there is none of that name, or several; or its file cannot be loaded.
    """
    return _load_builder(builder_folder(name) / f"{name}.py")


@functools.cache
def _load_builder(path: pathlib.Path) -> type[SegmentationBuilder]:
    """Loads a builder by its path: `datasets` is not a package, so as not to hide another one."""
    spec = importlib.util.spec_from_file_location(f"kdjax_datasets_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        # TFDS keeps one registry of names, in which ours might meet its own.
        with registered.skip_registration():
            spec.loader.exec_module(module)
    except UserError:
        raise
    # A user's own file may raise anything.
    except Exception as error:
        raise UserError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
    for value in vars(module).values():
        if (
            isinstance(value, type)
            and value.__module__ == module.__name__
            and issubclass(value, SegmentationBuilder)
        ):
            break
    else:
        raise UserError(f"{path} defines no subclass of kdjax.data.builder.SegmentationBuilder")
    # Prepared sets lie in a folder of the class's name, where another set's might lie already.
    if value.name != path.stem:
        raise UserError(
            f"{path}: class {value.__name__} makes a set named {value.name!r}; file, folder and "
            "set have one name, so rename the class or the files"
        )
    return value
