"""Prepared data sets: opened, measured, and identified by a fingerprint."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8

from kdjax.data._tensorflow import reason, tf
from kdjax.data.loading.records import CLASS_COUNTS, FileRecords, damaged
from kdjax.utils.bands import RGB, Bands, BandSums
from kdjax.utils.classes import IGNORE_LABEL
from kdjax.utils.errors import UserError

# The file that makes a set complete. It says what the records were made from.
RECEIPT = "kdjax.json"
_DESCRIPTIONS = ("dataset_info.json", "features.json", "metadata.json")  # of TFDS


@dataclasses.dataclass(frozen=True)
class PreparedSet:
    """A data set whose records are on a disk of this machine.

    Attributes:
      name: the name of the set.
      directory: the folder of its records.
      class_names: the names of the K classes.
      palette: the RGB color of each class.
      fingerprint: 16 hexadecimal digits that depend on the content and order of the records.
      skipped: a line for each damaged file that was skipped.
      bands: the bands of the images.
    """

    name: str
    directory: pathlib.Path
    class_names: tuple[str, ...]
    palette: UInt8[np.ndarray, "K 3"]
    fingerprint: str
    skipped: tuple[str, ...]
    bands: Bands
    _records: Mapping[str, FileRecords] = dataclasses.field(repr=False)

    @property
    def num_classes(self) -> int:
        """K: labels are 0..K-1, and 255 for ignored pixels."""
        return len(self.class_names)

    @property
    def splits(self) -> dict[str, int]:
        """The number of examples of each split."""
        return {split: len(records) for split, records in self._records.items()}

    def records(self, split: str) -> FileRecords:
        """Returns the records of `split`."""
        if split not in self._records:
            raise UserError(
                f"data set {self.name} has no split {split!r}; it has {', '.join(self._records)}"
            )
        return self._records[split]


def open_directory(directory: pathlib.Path) -> PreparedSet:
    """Opens the complete set in a folder."""
    receipt = read_receipt(directory)
    try:
        builder = tfds.builder_from_directory(directory)
        metadata: Any = builder.info.metadata or {}
        return PreparedSet(
            name=builder.name,
            directory=directory,
            class_names=tuple(metadata["class_names"]),
            palette=np.array(metadata["palette"], np.uint8),
            fingerprint=receipt["fingerprint"],
            skipped=tuple(receipt.get("skipped", ())),  # missing in old receipts
            bands=_bands_of(builder),
            _records=open_records(builder),
        )
    except UserError:
        raise
    except Exception as error:  # TFDS lets through any error of files with other content.
        raise damaged(directory, f"{', '.join(_DESCRIPTIONS)}: {reason(error)}") from error


def open_records(builder: tfds.core.DatasetBuilder) -> dict[str, FileRecords]:
    """Returns the records of each split that a builder wrote."""
    bands = _bands_of(builder)
    return {
        split: FileRecords(
            [os.fspath(path) for path in info.filepaths], info.num_examples, split, bands
        )
        for split, info in builder.info.splits.items()
    }


def _bands_of(builder: tfds.core.DatasetBuilder) -> Bands:
    metadata: Any = builder.info.metadata or {}
    if "bands" not in metadata:
        return RGB
    dtype, *others = metadata["bands"]
    return Bands(dtype, *map(tuple, others))


def read_receipt(directory: pathlib.Path) -> dict[str, Any]:
    """Returns what a set was made from, its fingerprint, and what was skipped."""
    try:
        receipt = json.loads((directory / RECEIPT).read_text(encoding="utf-8"))
        return {key: receipt[key] for key in ("made_from", "fingerprint")} | receipt
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise damaged(directory, f"{RECEIPT}: {error!r}") from error


def fingerprint(records: Mapping[str, FileRecords]) -> str:
    """Returns 16 hexadecimal digits of all examples in their order. Reads all of them."""
    digest = hashlib.sha256()
    for split in sorted(records):
        digest.update(f"{split} {len(records[split])}\n".encode())
        for index in range(len(records[split])):
            (record,) = records[split].read_serialized([index])
            example = tf.train.Example.FromString(record)
            # By field, because a serialized example has no fixed order of fields.
            for key in ("name", "image", "label"):
                for value in example.features.feature[key].bytes_list.value:
                    digest.update(hashlib.sha256(value).digest())
    return digest.hexdigest()[:16]


def write_class_counts(dataset: PreparedSet) -> None:
    """Writes the pixels of each class in every example, which `FileRecords.class_counts` reads."""
    counts = {
        f"pixels {split}": dataset.records(split).class_counts(dataset.num_classes)
        for split in dataset.splits
    }
    np.savez_compressed(dataset.directory / CLASS_COUNTS, allow_pickle=False, **counts)


@dataclasses.dataclass(frozen=True)
class SplitStatistics:
    """Statistics over all pixels of a split.

    Attributes:
      num_examples: the number of images.
      smallest: height and width of the image with the smallest area, in pixels.
      largest: those of the largest.
      class_shares: the share of each of the K classes among the labeled pixels.
      ignored_share: the share of ignored pixels among all.
      mean: the mean of each band: of photos red, green, and blue, 0..255.
      std: their standard deviations.
    """

    num_examples: int
    smallest: tuple[int, int]
    largest: tuple[int, int]
    class_shares: tuple[float, ...]
    ignored_share: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


def measure_split(dataset: PreparedSet, split: str) -> SplitStatistics:
    """Measures a split. Reads and decodes all of it."""
    records = dataset.records(split)
    sizes: set[tuple[int, int]] = set()
    labels = np.zeros(256, np.int64)
    sums = BandSums(dataset.bands.channels)
    for example in records.decoded(range(len(records))):
        sizes.add(example["label"].shape)
        labels += np.bincount(example["label"].ravel(), minlength=256)
        sums.add(example["image"])
    classes = labels[: dataset.num_classes]
    if (unknown := labels[dataset.num_classes : IGNORE_LABEL]).any():
        value = dataset.num_classes + np.flatnonzero(unknown)[0]
        raise UserError(
            f"split {split} of {dataset.directory} has labels of value {value}, but there are only "
            f"{dataset.num_classes} classes; remove it and prepare it again"
        )
    measured = sums.bands(dataset.bands.dtype)
    return SplitStatistics(
        num_examples=len(records),
        smallest=min(sizes, key=np.prod),
        largest=max(sizes, key=np.prod),
        class_shares=tuple(classes / max(classes.sum(), 1)),
        ignored_share=labels[IGNORE_LABEL] / labels.sum(),
        mean=measured.mean,
        std=measured.std,
    )
