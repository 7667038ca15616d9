"""A user's own data set: a random-access source of images and labels for each split."""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from jaxtyping import ArrayLike, UInt8

from kdjax.utils.bands import MOST, RGB, TYPES, Bands, check_rgb
from kdjax.utils.classes import IGNORE_LABEL, LabelTable, distinct_colors
from kdjax.utils.errors import UserError

if TYPE_CHECKING:
    from kdjax.data.loading.records import Records

_HASHED = 8  # examples of each split in the fingerprint


class RandomAccess(Protocol):
    """Examples by index, each a mapping that holds an image and its label.

    An index must always give the same pixels. Examples are read from several threads at once.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Dataset:
    """Images and labels from any source, to train on like a prepared set.

    Attributes:
      name: the name of the set.
      class_names: the names of the K classes, in the order of their ids 0..K-1.
      palette: the RGB color of each class.
      splits: the source of each split.
      bands: the bands of the images.
    """

    def __init__(  # noqa: PLR0913
        self,
        splits: Mapping[str, RandomAccess],
        class_names: Sequence[str],
        *,
        palette: ArrayLike | None = None,
        image: str = "image",
        label: str = "label",
        example_name: str = "",
        label_ids: Mapping[int, int] | None = None,
        name: str = "own",
        version: str = "",
        bands: Bands = RGB,
    ):
        """Describes a set without reading it.

        Args:
          splits: the examples of each split: anything with a length that returns a mapping for an
            index, such as a list of dicts, a TFDS data source, a HuggingFace data set, or a grain
            source. Examples are read from several threads at once.
          class_names: the names of the K classes, 1 to 255 of them.
          palette: the RGB color of each class, `[K, 3]`, 0..255; None for distinct colors.
          image: the feature that holds the image: an array of integers 0..255, `[H, W, 3]`, or a
            PIL image of any mode; with `bands`, an array `[H, W, C]` of their number type.
          label: the feature that holds the label: integers `[H, W]` or `[H, W, 1]`, or a PIL image
            of one channel. Its values are class ids, and 255 for ignored pixels.
          example_name: the feature that holds the name of an example; empty for its index.
          label_ids: the class id, or 255, of each label value, if labels do not hold class ids:
            `{1: 0, 2: 1, 0: 255}`. 255 stays 255 by default.
          name: the name in messages and run directories. Use "package.module:attribute" of this
            object to let other commands find it.
          version: part of the fingerprint, for changes in examples that the fingerprint does not
            read.
          bands: the bands of images that are not photos, from `kdjax.data.measure_bands`.

        Raises:
          UserError: if the description is invalid.
        """
        self.name = name
        self.class_names = tuple(class_names)
        self.splits = dict(splits)
        count = len(self.class_names)
        if isinstance(class_names, str) or not 1 <= count <= IGNORE_LABEL:
            raise self._error(f"class_names is {class_names!r}; give 1 to {IGNORE_LABEL} names")
        if not self.splits:
            raise self._error('no split; give splits, as {"train": ..., "val": ...}')
        for split, source in self.splits.items():
            if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
                raise self._error(
                    f"split {split!r} is a {type(source).__name__} without a length or without an "
                    "index; store a stream in a list or on disk first"
                )
            if len(source) == 0:
                raise self._error(f"split {split!r} is empty")
        colors = distinct_colors(count) if palette is None else np.asarray(palette)
        if colors.shape != (count, 3) or not _are_bytes(colors):
            raise self._error(
                f"palette is {colors.dtype} of shape {colors.shape}; it must hold integers 0..255 "
                f"of shape ({count}, 3)"
            )
        self.palette: UInt8[np.ndarray, "K 3"] = colors.astype(np.uint8)
        ids = dict(enumerate(range(count))) if label_ids is None else dict(label_ids)
        for value, number in ids.items():
            if not 0 <= number < count and number != IGNORE_LABEL:
                raise self._error(
                    f"label_ids maps {value} to {number}; class ids are 0..{count - 1}, and "
                    f"{IGNORE_LABEL} is ignored"
                )
        self.bands = Bands(*bands)
        if self.bands.dtype not in TYPES or not 1 <= self.bands.channels <= MOST:
            raise self._error(
                f"bands has {self.bands.channels} bands of {self.bands.dtype}; images have 1 to "
                f"{MOST} bands of {', '.join(TYPES)}"
            )
        check_rgb(self.bands.rgb, self.bands.channels, f"data set {name}: bands.rgb")
        self._version = version
        self._features = {"image": image, "label": label, "example_name": example_name}
        self._label_ids = {IGNORE_LABEL: IGNORE_LABEL} | ids
        self._allowed = f"0..{count - 1} and {IGNORE_LABEL}"
        if label_ids is not None:
            self._allowed = f"those of label_ids ({', '.join(map(str, sorted(self._label_ids)))})"

    def _error(self, what: str) -> UserError:
        return UserError(f"data set {self.name}: {what}")

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the description, the lengths, and some examples of each split.

        Reads at most 8 evenly spread examples of each split, the first and the last among them.

        Raises:
          UserError: if one of these examples is invalid.
        """
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()

        def add(value: Any) -> None:
            digest.update(json.dumps(value).encode() + b"\n")

        features = dict(zip(("image", "label", "name"), self._features.values(), strict=True))
        add([self.class_names, features, sorted(self._label_ids.items()), self._version])
        if self.bands != RGB:  # photos have the fingerprint of older versions
            add(self.bands)
        for split in sorted(self.splits):
            read = self._readers[split]
            chosen = np.unique(np.linspace(0, len(read) - 1, _HASHED).astype(int)).tolist()
            add([split, len(read)])
            for example in map(read, chosen):
                add([example["name"].decode(), *example["label"].shape])
                digest.update(example["image"].tobytes() + example["label"].tobytes())
        return digest.hexdigest()[:16]

    def records(self, split: str) -> "Records":
        """Returns the examples of `split`, which are checked when they are read.

        Raises:
          UserError: if the set has no such split.
        """
        if split not in self.splits:
            raise UserError(
                f"data set {self.name} has no split {split!r}; it has {', '.join(self.splits)}"
            )
        return self._records[split]

    @functools.cached_property
    def _readers(self) -> "dict[str, ExampleReader]":
        return {split: ExampleReader(self, split, source) for split, source in self.splits.items()}

    @functools.cached_property
    def _records(self) -> "dict[str, Records]":
        from kdjax.data.loading.records import SourceRecords

        return {split: SourceRecords(reader) for split, reader in self._readers.items()}


class ExampleReader:
    """Reads and checks the examples of a split. Several threads may call it at once."""

    def __init__(self, dataset: Dataset, split: str, source: RandomAccess):
        self._source = source
        self.bands = dataset.bands
        self._features = dataset._features
        self._ids = LabelTable(dataset._label_ids)
        self._allowed = dataset._allowed
        self.where = f"split {split!r} of data set {dataset.name}"
        self.has_names = bool(self._features["example_name"])

    def __len__(self) -> int:
        return len(self._source)

    def __call__(self, index: int) -> dict[str, Any]:
        """Returns an example as `Records.decoded` does, or raises a `UserError`."""
        who = f"example {index} of {self.where}"
        try:
            example = self._source[index]
        except UserError:
            raise
        except Exception as error:  # A source may raise anything.
            raise UserError(f"{who} cannot be read: {type(error).__name__}: {error}") from error
        try:
            return self._checked(index, example)
        except (ValueError, UserError) as error:
            raise UserError(f"{who} {error}") from error

    def _checked(self, index: int, example: Any) -> dict[str, Any]:
        if not isinstance(example, Mapping):
            raise ValueError(
                f'is a {type(example).__name__}; it must be a mapping, as {{"image": ...}}'
            )
        features: dict[str, Any] = {"example_name": str(index)}
        for role, key in self._features.items():
            if key and key not in example:
                found = ", ".join(map(str, example))
                raise ValueError(
                    f"has no {key!r}; it has {found}: choose one by Dataset({role}=...)"
                )
            features |= {role: example[key]} if key else {}
        image = (
            _image_of(features["image"])
            if self.bands == RGB
            else _bands_of(features["image"], self.bands)
        )
        label = _label_of(features["label"])
        if image.shape[:2] != label.shape:
            sizes = [f"{array.shape[1]} x {array.shape[0]}" for array in (image, label)]
            raise ValueError(
                f"has an image of {sizes[0]} pixels and a label of {sizes[1]}; they must have the "
                "same size"
            )
        ids = self._ids(label)
        if (unknown := ids < 0).any():
            value = label[unknown][0]
            raise ValueError(
                f"has a label that holds the value {value}; allowed are {self._allowed}"
            )
        name = features["example_name"]
        return {
            "image": image.astype(self.bands.dtype),
            "label": ids.astype(np.uint8),
            "name": name if isinstance(name, bytes) else str(name).encode(),
        }


def _image_of(value: Any) -> np.ndarray:
    if hasattr(value, "getexif"):  # a PIL image
        from kdjax.data.preparing.image_io import as_rgb

        return np.asarray(as_rgb(value, "has an image that"))
    pixels = np.asarray(value)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not _are_bytes(pixels):
        hint = "; channels come last" if pixels.ndim == 3 and len(pixels) == 3 else ""
        raise ValueError(
            f"has an image that is {_form(pixels)}; it must hold integers 0..255 of shape "
            f"(H, W, 3){hint}"
        )
    return pixels


def _bands_of(value: Any, bands: Bands) -> np.ndarray:
    image = np.asarray(value)
    if image.ndim == 2 and bands.channels == 1:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] != bands.channels or image.dtype != bands.dtype:
        raise ValueError(
            f"has an image that is {_form(image)}; it must be {bands.dtype} of shape "
            f"(H, W, {bands.channels}), as Dataset(bands=...) says"
        )
    if not np.isfinite(image).all():
        raise ValueError(
            "has an image with NaN or infinity; give those pixels a number, and the label 255"
        )
    return image


def _label_of(value: Any) -> np.ndarray:
    label = np.asarray(value)  # of a palette image, the indices
    if label.ndim == 3 and label.shape[2] == 1:
        label = label[..., 0]
    if label.ndim != 2 or label.dtype.kind not in "biu":
        raise ValueError(
            f"has a label that is {_form(label)}; it must hold integers of shape (H, W), a class "
            "id per pixel"
        )
    return label


def _are_bytes(values: np.ndarray) -> bool:
    """Returns True if all values are integers 0..255."""
    if values.dtype == np.uint8:
        return True
    return values.dtype.kind in "iu" and values.size > 0 and 0 <= values.min() <= values.max() < 256


def _form(array: np.ndarray) -> str:
    numbers = array.dtype.kind in "iuf" and array.size > 0
    span = f" from {array.min():.4g} to {array.max():.4g}" if numbers else ""
    return f"{array.dtype} of shape {array.shape}{span}"
