"""The builders of data sets: what they share, and how one is found."""

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
from kdjax.utils import imports
from kdjax.utils.classes import IGNORE_LABEL, distinct_colors
from kdjax.utils.errors import RAISED_BY_USERS, UserError, WrongValue


class _Info(tfds.core.DatasetInfo):
    """Descriptions that are written here, never found in TFDS's bucket."""

    def initialize_from_bucket(self) -> None:
        """Does nothing: TFDS would make a temporary folder for each call, and leave it there."""


class SegmentationBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A TFDS builder whose records hold an image, its label and its name.

    A record is `image`: PNG or JPEG bytes of an 8-bit RGB image, or its `tiles`; `label`: PNG bytes
    of one channel with the class ids 0..K-1, and 255 where the pixel is ignored; `name`: an id for
    people. A subclass says what its classes are and yields its examples; `sets.prepare` does the
    rest.
    """

    # Counts changes of the records. A set prepared under another version is not opened.
    VERSION = tfds.core.Version("1.0.0")
    # What `python -m kdjax prepare` may pass on, by keyword, beside `source`.
    OPTIONS: ClassVar[tuple[str, ...]] = ()
    # False where the records are made rather than converted.
    NEEDS_SOURCE: ClassVar[bool] = True

    @property
    def findings(self) -> list[str]:
        """What is about to be converted, a line each; known before anything is written."""
        return []

    @property
    def skipped(self) -> list[str]:
        """The damaged files that were left out, a line each; known when all is written."""
        return []

    @property
    @abc.abstractmethod
    def class_names(self) -> list[str]:
        """Names of the K classes, in the order of their ids."""

    @property
    def palette(self) -> UInt8[np.ndarray, "K 3"]:
        """RGB colour of each class."""
        return distinct_colors(len(self.class_names))

    @property
    def image_feature(self) -> tfds.features.FeatureConnector:
        """How records hold an image."""
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
            # Records keep the order of their keys; the pipeline shuffles as it reads.
            disable_shuffling=True,
            metadata=metadata_of(self.class_names, self.palette),
        )


def metadata_of(
    class_names: Sequence[str], palette: UInt8[np.ndarray, "K 3"]
) -> tfds.core.MetadataDict:
    """What stands beside the records of every set."""
    return tfds.core.MetadataDict(
        class_names=list(class_names), palette=palette.tolist(), ignore_label=IGNORE_LABEL
    )


def check_features(builder: tfds.core.GeneratorBasedBuilder) -> list[str]:
    """Requires that the records of any TFDS builder hold what those of `SegmentationBuilder` do.

    Returns:
      The names of the classes: `class_names` of its metadata, or else the label's own.

    Raises:
      UserError: they hold something else, or nothing names the classes.
    """
    who = f"the builder {type(builder).__name__}"
    features, metadata = builder.info.features, builder.info.metadata
    found: dict[str, Any] = {}
    if isinstance(features, tfds.features.FeaturesDict):
        found.update(features.items())
    for key, channels in (("image", 3), ("label", 1)):
        feature = found.get(key)
        is_image = isinstance(feature, tfds.features.Image)
        info: Any = feature.get_tensor_info() if is_image else None
        if info is None or info.shape[2:] != (channels,) or info.np_dtype != np.uint8:
            raise UserError(
                f"{who} has to have a feature {key!r}, a tfds.features.Image of uint8 and of shape "
                f"(None, None, {channels}); it has {feature or 'none'} (of others, make a "
                "kdjax.data.Dataset, which says which feature is which)"
            )
    if not isinstance(found.get("name"), tfds.features.Text):
        raise UserError(f"{who} has to have a feature 'name', a tfds.features.Text: an id")
    if isinstance(metadata, dict) and "class_names" in metadata:
        return list(metadata["class_names"])
    if isinstance(found["label"], tfds.features.LabeledImage):
        return found["label"].names
    raise UserError(
        f"{who} names no classes: make the label a tfds.features.LabeledImage, or give its info "
        "metadata with a list class_names"
    )


def check_example(example: Mapping[str, bytes], num_classes: int) -> None:
    """Requires of an encoded example what training takes for granted.

    Raises:
      UserError: its files are of different sizes, or the label holds what is no class.
    """
    with (
        Image.open(io.BytesIO(example["image"])) as image,
        Image.open(io.BytesIO(example["label"])) as label,
    ):
        who = f"example {example['name'].decode()!r}"
        if image.size != label.size:
            raise UserError(
                f"{who} has an image of {image.width} x {image.height} pixels and a label of "
                f"{label.width} x {label.height}; they have to be of one size"
            )
        if label.format != "PNG" or label.mode != "L":
            raise UserError(
                f"{who} has a label that is a {label.format} of mode {label.mode}; it has to be a "
                "PNG of one 8-bit channel"
            )
        values = np.unique(np.asarray(label))
    if (wrong := values[(values >= num_classes) & (values != IGNORE_LABEL)]).size:
        raise UserError(
            f"{who} has a label that holds the value {wrong[0]}; allowed are 0..{num_classes - 1} "
            f"and {IGNORE_LABEL}"
        )


def encode_png(pixels: UInt8[np.ndarray, "H W ..."]) -> bytes:
    """PNG bytes of an RGB image `[H, W, 3]` or a label `[H, W]`."""
    buffer = io.BytesIO()
    # Level 3 writes three times faster than the default 6, for files a few percent larger.
    Image.fromarray(pixels).save(buffer, "png", compress_level=3)
    return buffer.getvalue()


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
    if imports.SEPARATOR not in name:
        path = builder_folder(name) / f"{name}.py"
        with _LOADING:
            return _load_builder(path)
    found = imports.resolve("data set", name, {}, asked_by=asked_by)
    if not (isinstance(found, type) and issubclass(found, tfds.core.GeneratorBasedBuilder)):
        raise WrongValue(
            asked_by,
            f'names the data set "{name}", which is no builder class: derive it from '
            "kdjax.data.preparing.builder.SegmentationBuilder or tensorflow_datasets' "
            "GeneratorBasedBuilder (a kdjax.data.Dataset, or a function that returns one, needs no "
            "preparing: config.data.name takes it as it is)",
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
    # Prepared sets lie in a folder of the class's name, where another set's might lie already.
    if value.name != path.stem:
        raise UserError(
            f"{path}: class {value.__name__} makes a set named {value.name!r}; file, folder and "
            "set have one name, so rename the class or the files"
        )
    return value
