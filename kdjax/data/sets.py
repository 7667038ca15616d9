"""Finds, opens, and prepares the data sets that a config or a command names."""

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow_datasets as tfds

from kdjax.data.dataset import Dataset
from kdjax.data.interface import SegmentationSet
from kdjax.data.preparing.builder import find_builder
from kdjax.data.preparing.prepare import directory_of, needs_source, not_prepared
from kdjax.data.preparing.prepare import is_prepared as is_prepared
from kdjax.data.preparing.prepare import prepare as prepare
from kdjax.data.preparing.prepare import verify as verify
from kdjax.data.preparing.prepared import PreparedSet, open_directory
from kdjax.utils import imports
from kdjax.utils.errors import RAISED_BY_USERS, UserError, WrongValue
from kdjax.utils.log import logger


def open_set(
    name: str, data_dir: str | os.PathLike[str], *, asked_by: str = "the argument"
) -> PreparedSet:
    """Opens the prepared set `name` in `data_dir`. Prepares a set that needs no source.

    Args:
      name: the data set, as `find_builder` takes it.
      data_dir: the folder of prepared sets.
      asked_by: where the name comes from, for messages, such as "config.data.name".

    Raises:
      UserError: if there is no such data set, or it has not been prepared.
    """
    builder_class = find_builder(name, asked_by=asked_by)
    if is_prepared(name, data_dir):
        return open_directory(directory_of(name, builder_class, data_dir))
    if needs_source(builder_class):
        raise not_prepared(name, builder_class, data_dir)
    logger.info(f"Preparing the data set {name} in {data_dir}, once")
    return prepare(name, data_dir, report=logger.info)


def open_named(
    name: str,
    data_dir: str | os.PathLike[str],
    options: Mapping[str, Any],
    *,
    asked_by: str = "the argument",
) -> SegmentationSet:
    """Opens any data set that a config may name.

    Args:
      name: a prepared set, as `open_set` takes it; or "package.module:attribute" of a
        `kdjax.data.Dataset`, or of a function that returns one.
      data_dir: the folder of prepared sets. A function gets it if it has such an argument.
      options: further arguments of a function.
      asked_by: where the name comes from, for messages, such as "config.data.name".

    Raises:
      UserError: if there is no such data set, it is not prepared, or the function fails.
    """
    found: Any = None
    if imports.SEPARATOR in name:
        found = imports.resolve("data set", name, {}, asked_by=asked_by)
    is_builder = isinstance(found, type) and issubclass(found, tfds.core.DatasetBuilder)
    if callable(found) and not is_builder:
        return _call(name, found, os.fspath(data_dir), dict(options), asked_by)
    if options:
        raise WrongValue(
            asked_by,
            f'names "{name}", which takes no options ({", ".join(options)}): only a function that '
            "returns a kdjax.data.Dataset does",
        )
    return found if isinstance(found, Dataset) else open_set(name, data_dir, asked_by=asked_by)


def _call(
    name: str, function: Callable[..., Any], data_dir: str, options: dict[str, Any], asked_by: str
) -> Dataset:
    """Returns the data set that a user's function returns."""

    def wrong(why: str) -> WrongValue:
        return WrongValue(asked_by, f'names the data set "{name}", {why}')

    try:
        if "data_dir" in inspect.signature(function).parameters:
            options = {"data_dir": data_dir, **options}
        made = function(**options)
    except UserError:
        raise
    except RAISED_BY_USERS as error:
        raise wrong(f"which failed: {type(error).__name__}: {error}") from error
    if not isinstance(made, Dataset):
        raise wrong(f"which returned a {type(made).__name__}, no kdjax.data.Dataset")
    return made
