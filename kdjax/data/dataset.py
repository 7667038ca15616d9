"""A data set of a user's own: any random-access sources of images and labels, one a split."""

import collections
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from jaxtyping import ArrayLike, Int, Integer, UInt8

from kdjax.classes import IGNORE_LABEL, distinct_colors
from kdjax.data.interface import Opened
from kdjax.errors import UserError

if TYPE_CHECKING:
    import tensorflow as tf

    from kdjax.data.feeding.records import Read

_THREADS = 4  # that read examples for evaluation
_AHEAD = 8  # examples that are read before they are needed
_LOOKED_AT = 8  # examples of each split, for the fingerprint


class RandomAccess(Protocol):
    """Examples by index, each a mapping that holds an image and its label.

    An index always means the same example, with the same pixels: what is random belongs to the
    augmentation. Examples are read from several threads at once.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Dataset:
    """Images and labels from anywhere, which train as a prepared set does.

    Attributes:
        name: what it is called.
        class_names: of the K classes, in the order of their ids 0..K-1.
        palette: an RGB colour a class.
        splits: the source of each split.
    """

    def __init__(
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
    ):
        """Describes a set; nothing is read yet.

        Args:
            splits: split -> its examples: whatever has a length and gives a mapping for an index,
                such as a list of dicts, a data source of TFDS, a HuggingFace data set or a grain
                source. Examples are read from several threads at once.
            class_names: of the K classes, 1 to 255 of them.
            palette: RGB of each class, `[K, 3]`, 0..255; None for colours that differ.
            image: the feature that holds the image: an array of whole numbers 0..255, `[H, W, 3]`,
                or a PIL image of any mode.
            label: the feature that holds the label: whole numbers `[H, W]` or `[H, W, 1]`, or a PIL
                image of one channel; class ids, and 255 where a pixel is ignored.
            example_name: the feature that holds the name of an example; empty to call examples by
                their index.
            label_ids: the class id, or 255, that each value of the labels stands for, where they
                are not class ids, as `{1: 0, 2: 1, 0: 255}`; 255 means itself unless it is named.
            name: what the set is called in messages and workdirs; "package.module:attribute" of
                this object lets other commands find it.
            version: changes the fingerprint, for a change that the examples looked at do not show.

        Raises:
            UserError: the description makes no sense.
        """
        self.name = name
        self.class_names = tuple(class_names)
        self.splits = dict(splits)
        who = f"data set {name}"
        if isinstance(class_names, str) or not 1 <= len(self.class_names) <= IGNORE_LABEL:
            raise UserError(
                f"{who}: class_names is {class_names!r}; give 1 to {IGNORE_LABEL} names"
            )
        if not self.splits:
            raise UserError(f'{who} has no split; give splits, as {{"train": ..., "val": ...}}')
        for split, source in self.splits.items():
            lacks = [m for m in ("__len__", "__getitem__") if not hasattr(source, m)]
            if lacks:
                raise UserError(
                    f"{who}: split {split!r} is a {type(source).__name__} without {lacks[0]}; "
                    "examples are read by index, so a stream has to be held or written first"
                )
            if len(source) == 0:
                raise UserError(f"{who}: split {split!r} is empty")
        count = len(self.class_names)
        colors = distinct_colors(count) if palette is None else np.asarray(palette)
        if colors.shape != (count, 3) or not _are_bytes(colors):
            raise UserError(
                f"{who}: palette is {colors.dtype} of shape {colors.shape}; it must hold whole "
                f"numbers 0..255 of shape ({count}, 3)"
            )
        self.palette: UInt8[np.ndarray, "K 3"] = colors.astype(np.uint8)
        self._version = version
        self._features = {"image": image, "label": label, "name": example_name}
        self._label_ids = _LabelIds(label_ids, count, who)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the description, the lengths, and a few examples of each split.

        Of a split at most 8 examples are looked at, evenly spread, the first and the last among
        them: reading all of them on every start would take too long.

        Raises:
            UserError: one of these examples is not as it should be.
        """
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()

        def add(value: Any) -> None:
            digest.update(json.dumps(value).encode() + b"\n")

        add([self.class_names, self._features, self._label_ids.pairs, self._version])
        for split in sorted(self.splits):
            examples = self.records(split)
            chosen = np.unique(np.linspace(0, len(examples) - 1, _LOOKED_AT).astype(int)).tolist()
            add([split, len(examples)])
            for example in examples.decoded(chosen):
                add([example["name"].decode(), *example["label"].shape])
                digest.update(example["image"].tobytes() + example["label"].tobytes())
        return digest.hexdigest()[:16]

    def records(self, split: str) -> "SourceSplit":
        """The examples of `split`, checked as they are read.

        Raises:
            UserError: the set has no such split.
        """
        if split not in self.splits:
            raise UserError(
                f"data set {self.name} has no split {split!r}; it has {', '.join(self.splits)}"
            )
        return self._opened[split]

    @functools.cached_property
    def _opened(self) -> "dict[str, SourceSplit]":
        return {
            split: SourceSplit(
                source, self._features, self._label_ids, f"split {split!r} of data set {self.name}"
            )
            for split, source in self.splits.items()
        }


class _LabelIds:
    """Turns the values of labels into class ids, and says which value is none."""

    def __init__(self, ids: Mapping[int, int] | None, num_classes: int, who: str):
        if ids is not None and not ids:
            raise UserError(f"{who}: label_ids is empty; leave it out where labels are class ids")
        given = dict(enumerate(range(num_classes))) if ids is None else ids
        for value, number in given.items():
            if not 0 <= number < num_classes and number != IGNORE_LABEL:
                raise UserError(
                    f"{who}: label_ids maps {value} to {number}; class ids are "
                    f"0..{num_classes - 1}, and {IGNORE_LABEL} is ignored"
                )
        self.pairs = sorted(({IGNORE_LABEL: IGNORE_LABEL} | dict(given)).items())
        self.known = (
            f"0..{num_classes - 1} and {IGNORE_LABEL}"
            if ids is None
            else f"those of label_ids ({', '.join(str(value) for value, _ in self.pairs)})"
        )
        # With an entry at each end for everything beyond.
        self._low = self.pairs[0][0] - 1
        self._ids = np.full(self.pairs[-1][0] + 1 - self._low + 1, -1, np.int16)
        for value, number in self.pairs:
            self._ids[value - self._low] = number
        self._of_bytes = self._look_up(np.arange(256))

    def __call__(self, values: Integer[np.ndarray, "H W"]) -> Int[np.ndarray, "H W"]:
        """Class ids, int16, and -1 where a value stands for none."""
        return self._of_bytes[values] if values.dtype == np.uint8 else self._look_up(values)

    def _look_up(self, values: Integer[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
        # Unsigned numbers beyond 2^63 - 1 become negative, and those are no class either.
        return self._ids.take(values.astype(np.int64) - self._low, mode="clip")


class SourceSplit:
    """The examples of a user's source, in the form that training takes."""

    def __init__(
        self, source: RandomAccess, features: Mapping[str, str], label_ids: _LabelIds, where: str
    ):
        self._source = source
        self._features = features
        self._label_ids = label_ids
        self._where = where
        self._sizes: dict[int, tuple[int, int]] = {}
        self.lengths = (len(source),)
        self.weights = (1,)

    def __len__(self) -> int:
        return self.lengths[0]

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """As `Split` has it: these examples have no serialized form."""
        return [b""] * len(indices)

    def fetch(self, indices: "tf.Tensor") -> "tf.Tensor":
        """The indices: `decode` reads, which is done in parallel."""
        return indices

    def decode(self, fetched: "tf.Tensor") -> "tuple[tf.Tensor, Read]":
        """As `Source` has it."""
        from kdjax.data.feeding import records

        opened = self.open(fetched, fetched)
        return opened.label, records.reader(opened)

    def open(self, record: "tf.Tensor", index: "tf.Tensor") -> Opened:
        """As `Split` has it; reads and decodes all of the example."""
        from kdjax.data._tensorflow import tf

        del record

        def load(index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            example = self._example(int(index))
            return example["image"], example["label"]

        image, label = tf.numpy_function(load, [index], [tf.uint8, tf.uint8])
        return Opened(
            label=tf.ensure_shape(label, [None, None]),
            encoded=tf.zeros([0], tf.string),
            pixels=tf.ensure_shape(image, [None, None, 3]),
        )

    def check(self, indices: Sequence[int]) -> None:
        """As `Source` has it."""
        for index in indices:
            self._example(index)

    def names(self) -> list[str]:
        """The names of all examples; reads all of them where a feature holds the names."""
        if not self._features["name"]:
            return [str(index) for index in range(len(self))]
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(
                pool.map(lambda index: self._name(index, self._get(index)), range(len(self)))
            )

    def sizes(self, indices: Sequence[int]) -> list[tuple[int, int]]:
        """Height and width of examples, each of which is read once."""
        unknown = sorted(set(indices) - self._sizes.keys())
        with ThreadPoolExecutor(_THREADS) as pool:
            self._sizes |= zip(unknown, pool.map(self._size, unknown), strict=True)
        return [self._sizes[index] for index in indices]

    def decoded(self, indices: Sequence[int]) -> Iterator[dict[str, Any]]:
        """As `Split` has it."""
        waiting: collections.deque[Future[dict[str, Any]]] = collections.deque()
        with ThreadPoolExecutor(_THREADS) as pool:
            for index in indices:
                waiting.append(pool.submit(self._example, int(index)))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _example(self, index: int) -> dict[str, Any]:
        """The example at `index`, as `decoded` yields it."""
        example = self._get(index)
        image, label = self._image(index, example), self._label(index, example)
        if image.shape[:2] != label.shape:
            raise UserError(
                f"{self._of(index)} has an image of {_times(image)} pixels and a label of "
                f"{_times(label)}; they have to be of one size"
            )
        ids = self._label_ids(label)
        if (unknown := ids < 0).any():
            raise UserError(
                f"{self._of(index)} has a label that holds the value {label[unknown][0]}; allowed "
                f"are {self._label_ids.known}"
            )
        return {
            "image": np.ascontiguousarray(image, np.uint8),
            "label": ids.astype(np.uint8),
            "name": self._name(index, example).encode(),
        }

    def _get(self, index: int) -> Mapping[str, Any]:
        try:
            example = self._source[index]
        except UserError:
            raise
        # A source may raise anything.
        except Exception as error:
            raise UserError(
                f"{self._of(index)} cannot be read: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(example, Mapping):
            raise UserError(
                f"{self._of(index)} is a {type(example).__name__}; it has to be a mapping, as "
                '{"image": ..., "label": ...}'
            )
        return example

    def _feature(self, index: int, example: Mapping[str, Any], role: str) -> Any:
        key = self._features[role]
        if key not in example:
            argument = "example_name" if role == "name" else role
            raise UserError(
                f"{self._of(index)} has no {key!r}; it has {', '.join(map(str, example))}: say "
                f"which by Dataset({argument}=...)"
            )
        return example[key]

    def _image(self, index: int, example: Mapping[str, Any]) -> np.ndarray:
        value = self._feature(index, example, "image")
        if _is_pil(value):
            from kdjax.data.preparing.originals import as_rgb

            return np.asarray(as_rgb(value, self._of(index)))
        pixels = np.asarray(value)
        if pixels.ndim != 3 or pixels.shape[2] != 3 or not _are_bytes(pixels):
            hint = "; channels come last" if pixels.ndim == 3 and len(pixels) == 3 else ""
            raise UserError(
                f"{self._of(index)} has an image that is {_form(pixels)}; it has to hold whole "
                f"numbers 0..255 of shape (H, W, 3){hint}"
            )
        return pixels

    def _label(self, index: int, example: Mapping[str, Any]) -> np.ndarray:
        value = self._feature(index, example, "label")
        # Of a palette image the indices, not the colours.
        label = np.asarray(value)
        if label.ndim == 3 and label.shape[2] == 1:
            label = label[..., 0]
        if label.ndim != 2 or label.dtype.kind not in "biu":
            found = f"a PIL image of mode {value.mode}" if _is_pil(value) else _form(label)
            raise UserError(
                f"{self._of(index)} has a label that is {found}; it has to hold whole numbers of "
                "shape (H, W), a class id a pixel"
            )
        return label

    def _size(self, index: int) -> tuple[int, int]:
        height, width = self._label(index, self._get(index)).shape
        return height, width

    def _name(self, index: int, example: Mapping[str, Any]) -> str:
        if not self._features["name"]:
            return str(index)
        name = self._feature(index, example, "name")
        return name.decode() if isinstance(name, bytes) else str(name)

    def _of(self, index: int) -> str:
        return f"example {index} of {self._where}"


def _is_pil(value: Any) -> bool:
    return hasattr(value, "mode") and hasattr(value, "getexif")


def _are_bytes(values: np.ndarray) -> bool:
    if values.dtype == np.uint8:
        return True
    return values.dtype.kind in "iu" and values.size > 0 and 0 <= values.min() <= values.max() < 256


def _form(array: np.ndarray) -> str:
    numbers = array.dtype.kind in "iuf" and array.size > 0
    span = f" from {array.min():.4g} to {array.max():.4g}" if numbers else ""
    return f"{array.dtype} of shape {array.shape}{span}"


def _times(array: np.ndarray) -> str:
    return f"{array.shape[1]} x {array.shape[0]}"
