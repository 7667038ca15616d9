"""Builders of data sets: their base class, and how a builder is found by name."""

import abc
import functools
import importlib.util
import pathlib
import threading
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from tensorflow_datasets.core import registered

from kdjax.data.preparing.classes import builder_folder
from kdjax.data.preparing.image_io import encode_png as encode_png
from kdjax.utils import imports
from kdjax.utils.bands import RGB, Bands
from kdjax.utils.classes import IGNORE_LABEL, distinct_colors
from kdjax.utils.errors import RAISED_BY_USERS, UserError, WrongValue


class _Info(tfds.core.DatasetInfo):
    """A description that does not come from TFDS's bucket."""

    def initialize_from_bucket(self) -> None:
        """Does nothing. TFDS would leave a temporary folder behind on each call."""


class SegmentationBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A TFDS builder whose records hold an image, its label and its name.

    A record is `image`: PNG or JPEG bytes of an 8-bit RGB image, or its `tiles`, or the compressed
    values of other bands; `label`: PNG bytes of one channel with the class ids 0..K-1, and 255 for
    ignored pixels; `name`: an id for people.
    A subclass defines its classes and yields its examples in the order of their keys.
    """

    # Increases when the records change. A set prepared with another version is not opened.
    VERSION = tfds.core.Version("1.0.0")
    # The options of `python -m kdjax prepare` that the builder takes by keyword.
    OPTIONS: ClassVar[tuple[str, ...]] = ()
    # False if the records are generated.
    NEEDS_SOURCE: ClassVar[bool] = True

    @property
    def findings(self) -> list[str]:
        """Remarks on what will be converted, known before anything is written."""
        return []

    @property
    def skipped(self) -> list[str]:
        """A line for each damaged file that was skipped."""
        return []

    @property
    @abc.abstractmethod
    def class_names(self) -> list[str]:
        """The names of the K classes in the order of their ids."""

    @property
    def palette(self) -> UInt8[np.ndarray, "K 3"]:
        """The RGB color of each class."""
        return distinct_colors(len(self.class_names))

    @property
    def bands(self) -> Bands:
        """The bands of the images."""
        return RGB

    @property
    def image_feature(self) -> tfds.features.FeatureConnector:
        """The TFDS feature of an image."""
        if self.bands == RGB:
            return tfds.features.Image(shape=(None, None, 3))
        return tfds.features.Sequence(tfds.features.Text())  # of bytes

    def _info(self) -> tfds.core.DatasetInfo:
        return _Info(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": self.image_feature,
                    "label": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
                    "name": tfds.features.Text(),
                }
            ),
            disable_shuffling=True,  # The pipeline shuffles when it reads.
            metadata=metadata_of(self.class_names, self.palette, self.bands),
        )


def metadata_of(
    class_names: Sequence[str], palette: UInt8[np.ndarray, "K 3"], bands: Bands = RGB
) -> tfds.core.MetadataDict:
    """Returns the metadata of a set, which TFDS writes next to its records."""
    measured = {} if bands == RGB else {"bands": list(bands)}
    return tfds.core.MetadataDict(
        class_names=list(class_names),
        palette=palette.tolist(),
        ignore_label=IGNORE_LABEL,
        **measured,
    )


def find_builder(
    name: str, *, asked_by: str = "the argument"
) -> type[tfds.core.GeneratorBasedBuilder]:
    """Returns the builder of a data set.

    Args:
      name: the name of the set, or "package.module:attribute" of a builder class.
      asked_by: where the name comes from, for messages, such as "config.data.name".

    Raises:
      UserError: if there is no such set, there are several, or the builder cannot be used.
    """
    if imports.SEPARATOR not in name:
        with _LOADING:
            return _load_builder(builder_folder(name) / f"{name}.py")
    found = imports.resolve("data set", name, {}, asked_by=asked_by)
    if not (isinstance(found, type) and issubclass(found, tfds.core.GeneratorBasedBuilder)):
        raise WrongValue(
            asked_by,
            f'names the data set "{name}", which is no builder class: derive it from '
            "kdjax.data.preparing.builder.SegmentationBuilder or tensorflow_datasets' "
            "GeneratorBasedBuilder (a kdjax.data.Dataset, or a function that returns one, needs no "
            "preparing: set config.data.name to it)",
        )
    if found.BUILDER_CONFIGS:
        raise WrongValue(
            asked_by,
            f'names the data set "{name}", which has several BUILDER_CONFIGS: name a subclass for '
            "one of them, whose BUILDER_CONFIGS is empty",
        )
    return found


# Two threads must not load one file twice, nor one end the other's `skip_registration`.
_LOADING = threading.Lock()


@functools.cache
def _load_builder(path: pathlib.Path) -> type[SegmentationBuilder]:
    """Loads a builder by its path. A package `datasets` would hide the well-known library."""
    spec = importlib.util.spec_from_file_location(f"kdjax_datasets_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        # TFDS has builders with the same names in its registry.
        with registered.skip_registration():
            spec.loader.exec_module(module)
    except UserError:
        raise
    except RAISED_BY_USERS as error:
        raise UserError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
    for value in vars(module).values():
        if (
            isinstance(value, type)
            and value.__module__ == module.__name__
            and issubclass(value, SegmentationBuilder)
        ):
            break
    else:
        raise UserError(
            f"{path} defines no subclass of kdjax.data.preparing.builder.SegmentationBuilder"
        )
    # Records are stored under the name of the class, which may be that of another set.
    if value.name != path.stem:
        raise UserError(
            f"{path}: class {value.__name__} makes a set named {value.name!r}; file, folder and "
            "set must have one name, so rename the class or the files"
        )
    return value
