"""What all data sets have in common: the schema of their records and a base for builders."""

import abc
import colorsys
import io
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from PIL import Image

IGNORE_LABEL = 255


class SegmentationBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A TFDS builder whose records hold an image, its label and its name.

    A record is `image`: PNG or JPEG bytes of an 8-bit RGB image, or its `tiles`; `label`: PNG bytes
    of one channel with the class ids 0..K-1, and 255 where the pixel is ignored; `name`: an id for
    people. A subclass says what its classes are and yields its examples; `sets.prepare` does the
    rest.
    """

    # Counts changes of the records. A set prepared under another version is not opened.
    VERSION = tfds.core.Version("1.0.0")
    # What `python -m kdjax.prepare` may pass on, by keyword, beside `source`.
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
        return tfds.core.DatasetInfo(
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
            metadata=tfds.core.MetadataDict(
                class_names=self.class_names,
                palette=self.palette.tolist(),
                ignore_label=IGNORE_LABEL,
            ),
        )


def encode_png(pixels: UInt8[np.ndarray, "H W ..."]) -> bytes:
    """PNG bytes of an RGB image `[H, W, 3]` or a label `[H, W]`."""
    buffer = io.BytesIO()
    # Level 3 writes three times faster than the default 6, for files a few percent larger.
    Image.fromarray(pixels).save(buffer, "png", compress_level=3)
    return buffer.getvalue()


def distinct_colors(count: int) -> UInt8[np.ndarray, "K 3"]:
    """`count` RGB colours that tell neighbouring ids apart, the same on every call.

    Hues advance by the golden ratio, which never comes back close to a recent one; brightness and
    saturation take turns so that ids with similar hues still differ.
    """
    colors = [
        colorsys.hsv_to_rgb(
            0.58 + i * 0.6180339887, (0.75, 0.5, 0.95)[i % 3], (0.9, 0.98, 0.65)[i // 3 % 3]
        )
        for i in range(count)
    ]
    return np.round(np.asarray(colors).reshape(count, 3) * 255).astype(np.uint8)
