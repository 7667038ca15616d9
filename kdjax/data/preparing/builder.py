"""Builders of data sets: their base class, and how a builder is found by name."""

import abc
import functools
import importlib.util
import io
import pathlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from PIL import Image
from tensorflow_datasets.core import registered

from kdjax.data.preparing.classes import builder_folder
from kdjax.data.preparing.image_io import encode_png as encode_png
from kdjax.utils import imports
from kdjax.utils.classes import IGNORE_LABEL, distinct_colors
from kdjax.utils.errors import RAISED_BY_USERS, UserError
from kdjax.utils.schema import WrongValue


class _Info(tfds.core.DatasetInfo):
    """A description that does not come from TFDS's bucket."""

    def initialize_from_bucket(self) -> None:
        """Does nothing. TFDS would leave a temporary folder behind on each call."""


class SegmentationBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A TFDS builder whose records hold an image, its label and its name.

    A record is `image`: PNG or JPEG bytes of an 8-bit RGB image, or its `tiles`; `label`: PNG bytes
    of one channel with the class ids 0..K-1, and 255 for ignored pixels; `name`: an id for people.
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
    def image_feature(self) -> tfds.features.FeatureConnector:
        """The TFDS feature of an image."""
        return tfds.features.Image(shape=(None, None, 3))

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
            metadata=metadata_of(self.class_names, self.palette),
        )


def metadata_of(
    class_names: Sequence[str], palette: UInt8[np.ndarray, "K 3"]
) -> tfds.core.MetadataDict:
    """Returns what a prepared set stores about its classes."""
    return tfds.core.MetadataDict(
        class_names=list(class_names), palette=palette.tolist(), ignore_label=IGNORE_LABEL
    )


def check_features(builder: tfds.core.GeneratorBasedBuilder) -> list[str]:
    """Checks that the features of any TFDS builder are those of `SegmentationBuilder`.

    Returns:
      The class names: `class_names` of its metadata, or those of its label.

    Raises:
      UserError: if the features differ, or nothing names the classes.
    """
    who = f"the builder {type(builder).__name__}"
    metadata: Any = builder.info.metadata or {}
    features: Any = builder.info.features
    found = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    for key, channels in (("image", 3), ("label", 1)):
        feature = found.get(key)
        info = feature.get_tensor_info() if isinstance(feature, tfds.features.Image) else None
        if info is None or info.shape[2:] != (channels,) or info.np_dtype != np.uint8:
            raise UserError(
                f"{who} needs a feature {key!r}, a tfds.features.Image of uint8 and of shape "
                f"(None, None, {channels}); it has {feature or 'none'} (for other features, use a "
                "kdjax.data.Dataset)"
            )
    if not isinstance(found.get("name"), tfds.features.Text):
        raise UserError(f"{who} needs a feature 'name', a tfds.features.Text with an id")
    names = metadata.get("class_names") or getattr(found["label"], "names", None)
    if not names:
        raise UserError(
            f"{who} names no classes: make the label a tfds.features.LabeledImage, or give its "
            "info metadata with a list class_names"
        )
    return list(names)


def check_example(example: Mapping[str, bytes], num_classes: int) -> None:
    """Checks that image and label of an encoded example fit.

    Raises:
      UserError: if their sizes differ, or the label holds something other than class ids.
    """
    who = f"example {example['name'].decode()!r} has"
    with (
        Image.open(io.BytesIO(example["image"])) as image,
        Image.open(io.BytesIO(example["label"])) as label,
    ):
        if image.size != label.size:
            raise UserError(
                f"{who} an image of {image.width} x {image.height} pixels and a label of "
                f"{label.width} x {label.height}; they must have the same size"
            )
        values = np.unique(np.asarray(label))
    if (wrong := values[(values >= num_classes) & (values != IGNORE_LABEL)]).size:
        raise UserError(
            f"{who} a label that holds the value {wrong[0]}; allowed are 0..{num_classes - 1} "
            f"and {IGNORE_LABEL}"
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
            "one of them, with empty BUILDER_CONFIGS",
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
