"""Finds the builders of data sets: by name, a folder and a file each, or by their class."""

import functools
import importlib.util
import pathlib
import threading

import tensorflow_datasets as tfds
from tensorflow_datasets.core import registered

from kdjax import names
from kdjax.builders import builder_folder
from kdjax.data.builder import SegmentationBuilder
from kdjax.errors import UserError
from kdjax.ranges import WrongValue

# Two threads must not load one file twice, nor one end the other's `skip_registration`.
_LOADING = threading.Lock()


def find_builder(
    name: str, *, asked_by: str = "the argument"
) -> type[tfds.core.GeneratorBasedBuilder]:
    """Returns the builder of a data set.

    Args:
        name: of the set, or "package.module:attribute" of a builder class.
        asked_by: what holds the name, for messages, as "config.data.name".

    Raises:
        UserError: there is none of that name, or several; or it cannot be loaded or used.
    """
    if names.SEPARATOR not in name:
        path = builder_folder(name) / f"{name}.py"
        with _LOADING:
            return _load_builder(path)
    found = names.resolve("data set", name, {}, asked_by=asked_by)
    if not (isinstance(found, type) and issubclass(found, tfds.core.GeneratorBasedBuilder)):
        raise WrongValue(
            asked_by,
            f'names the data set "{name}", which is no builder class: derive it from '
            "kdjax.data.builder.SegmentationBuilder or tensorflow_datasets' GeneratorBasedBuilder "
            "(a kdjax.data.Dataset, or a function that returns one, needs no preparing: "
            "config.data.name takes it as it is)",
        )
    if found.BUILDER_CONFIGS:
        raise WrongValue(
            asked_by,
            f'names the data set "{name}", which has several BUILDER_CONFIGS: name a subclass for '
            "one of them, whose BUILDER_CONFIGS is empty",
        )
    return found


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
