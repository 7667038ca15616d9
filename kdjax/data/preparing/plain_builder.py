"""Checks of TFDS builders that do not know kdjax, so that their records serve like its own."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from kdjax.data._tensorflow import tf
from kdjax.data.loading.records import FileRecords
from kdjax.utils.classes import IGNORE_LABEL
from kdjax.utils.errors import UserError


def class_names_of(builder: tfds.core.GeneratorBasedBuilder) -> list[str]:
    """Returns the class names of a builder after checking its features.

    They are the `class_names` of its metadata, or else those of its label.

    Raises:
      UserError: if a feature is missing or of another kind, or nothing names the classes.
    """
    who = f"the builder {type(builder).__name__}"
    features, metadata = builder.info.features, builder.info.metadata
    found: dict[str, Any] = {}
    if isinstance(features, tfds.features.FeaturesDict):
        found.update(features.items())
    for key, channels in (("image", 3), ("label", 1)):
        feature = found.get(key)
        info: Any = feature.get_tensor_info() if isinstance(feature, tfds.features.Image) else None
        if info is None or info.shape[2:] != (channels,) or info.np_dtype != np.uint8:
            raise UserError(
                f"{who} needs a feature {key!r}, a tfds.features.Image of uint8 and of shape "
                f"(None, None, {channels}); it has {feature or 'none'} (for other features, make a "
                "kdjax.data.Dataset)"
            )
    if not isinstance(found.get("name"), tfds.features.Text):
        raise UserError(f"{who} needs a feature 'name', a tfds.features.Text: an id")
    if isinstance(metadata, dict) and "class_names" in metadata:
        return list(metadata["class_names"])
    if isinstance(found["label"], tfds.features.LabeledImage):
        return found["label"].names
    raise UserError(
        f"{who} names no classes: make the label a tfds.features.LabeledImage, or give its info "
        "metadata with a list class_names"
    )


def check_examples(records: Mapping[str, FileRecords], num_classes: int) -> None:
    """Checks all records that a builder wrote.

    Raises:
      UserError: if an image and its label have different sizes, or a label has a wrong value.
    """
    for split in records.values():
        for index in range(len(split)):
            feature = tf.train.Example.FromString(*split.read_serialized([index])).features.feature
            image, label, name = (
                feature[key].bytes_list.value[0] for key in ("image", "label", "name")
            )
            _check_example(image, label, f"example {name.decode()!r}", num_classes)


def _check_example(image: bytes, label: bytes, who: str, num_classes: int) -> None:
    with Image.open(io.BytesIO(image)) as photo, Image.open(io.BytesIO(label)) as labels:
        if photo.size != labels.size:
            raise UserError(
                f"{who} has an image of {photo.width} x {photo.height} pixels and a label of "
                f"{labels.width} x {labels.height}; they must have one size"
            )
        if labels.format != "PNG" or labels.mode != "L":
            raise UserError(
                f"{who} has a label that is a {labels.format} of mode {labels.mode}; it must be a "
                "PNG of one 8-bit channel"
            )
        values = np.unique(np.asarray(labels))
    if (wrong := values[(values >= num_classes) & (values != IGNORE_LABEL)]).size:
        raise UserError(
            f"{who} has a label that holds the value {wrong[0]}; allowed are 0..{num_classes - 1} "
            f"and {IGNORE_LABEL}"
        )
