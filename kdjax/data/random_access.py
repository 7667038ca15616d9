"""The examples of a user's own source, by index, in the form that training takes."""

import collections
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from kdjax.data.interface import Opened, WindowReader
from kdjax.utils.classes import IGNORE_LABEL, LabelTable
from kdjax.utils.errors import UserError

if TYPE_CHECKING:
    import tensorflow as tf


_THREADS = 4  # that read examples for evaluation
_AHEAD = 8  # examples that are read before they are needed


class RandomAccess(Protocol):
    """Examples by index, each a mapping that holds an image and its label.

    An index always means the same example, with the same pixels: what is random belongs to the
    augmentation. Examples are read from several threads at once.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class LabelIds:
    """What each value of the labels stands for, and the words for which are known."""

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
        self.look_up = LabelTable(dict(self.pairs))


class SourceSplit:
    """The examples of a user's source, in the form that training takes."""

    def __init__(
        self, source: RandomAccess, features: Mapping[str, str], label_ids: LabelIds, where: str
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

    def read_serialized(self, indices: Sequence[int]) -> list[bytes]:
        """As `Split` has it: these examples have no serialized form."""
        return [b""] * len(indices)

    def fetch(self, indices: "tf.Tensor") -> "tf.Tensor":
        """The indices: `decode` reads, which is done in parallel."""
        return indices

    def decode(self, fetched: "tf.Tensor") -> "tuple[tf.Tensor, WindowReader]":
        """As `Source` has it."""
        from kdjax.data.loading import records

        opened = self.open(fetched, fetched)
        return opened.label, records.window_reader(opened)

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
        ids = self._label_ids.look_up(label)
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
            from kdjax.data.preparing.image_io import as_rgb

            return np.asarray(as_rgb(value, self._of(index)))
        pixels = np.asarray(value)
        if pixels.ndim != 3 or pixels.shape[2] != 3 or not are_bytes(pixels):
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


def are_bytes(values: np.ndarray) -> bool:
    """Whether all values are whole numbers 0..255."""
    if values.dtype == np.uint8:
        return True
    return values.dtype.kind in "iu" and values.size > 0 and 0 <= values.min() <= values.max() < 256


def _form(array: np.ndarray) -> str:
    numbers = array.dtype.kind in "iuf" and array.size > 0
    span = f" from {array.min():.4g} to {array.max():.4g}" if numbers else ""
    return f"{array.dtype} of shape {array.shape}{span}"


def _times(array: np.ndarray) -> str:
    return f"{array.shape[1]} x {array.shape[0]}"
