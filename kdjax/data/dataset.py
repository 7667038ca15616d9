"""A data set of a user's own: any random-access sources of images and labels, one a split."""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import ArrayLike, UInt8

from kdjax.data.random_access import LabelIds, RandomAccess, SourceSplit, are_bytes
from kdjax.utils.classes import IGNORE_LABEL, distinct_colors
from kdjax.utils.errors import UserError

if TYPE_CHECKING:
    pass

_LOOKED_AT = 8  # examples of each split, for the fingerprint


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
        if colors.shape != (count, 3) or not are_bytes(colors):
            raise UserError(
                f"{who}: palette is {colors.dtype} of shape {colors.shape}; it must hold whole "
                f"numbers 0..255 of shape ({count}, 3)"
            )
        self.palette: UInt8[np.ndarray, "K 3"] = colors.astype(np.uint8)
        self._version = version
        self._features = {"image": image, "label": label, "name": example_name}
        self._label_ids = LabelIds(label_ids, count, who)

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
