"""Prepared data sets: split by split in shards, in numbers, and opened again.

A shard is there whole or not at all, so that what was stopped can be continued. It counts once its
note stands beside it: written last, that says which files the shard was made from, in what state,
and what was left out.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from google.protobuf.message import DecodeError
from jaxtyping import UInt8
from tensorflow_datasets.core.splits import SplitDict

from kdjax.data._tensorflow import reason, tf
from kdjax.data.loading.records import Records, damaged
from kdjax.data.preparing.tree import File
from kdjax.utils.classes import IGNORE_LABEL
from kdjax.utils.errors import UserError

NOTES = "shards"  # folder of the notes, beside the folder of the records
SHARD_SIZE = 256  # images; of Cityscapes, 600 MB


@dataclasses.dataclass(frozen=True)
class Note:
    """What is known of a finished shard: its records, their bytes, what was left out of it."""

    made_from: str
    examples: int
    num_bytes: int
    skipped: list[str]


def state_of(files: Iterable[File]) -> str:
    """Changes with the order, place, size and time of change of `files`."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file} {file.state()}\n".encode())
    return digest.hexdigest()


def serialized(example: Mapping[str, bytes | list[bytes]]) -> bytes:
    """An example as a record: the same bytes in every process, which protobuf does not promise."""
    features = {
        key: tf.train.Feature(
            bytes_list=tf.train.BytesList(value=[value] if isinstance(value, bytes) else value)
        )
        for key, value in example.items()
    }
    message = tf.train.Example(features=tf.train.Features(feature=features))
    return message.SerializeToString(deterministic=True)


def read_note(notes: pathlib.Path, shard: str) -> Note | None:
    """The note of a shard, where there is one that is whole."""
    try:
        return Note(**json.loads((notes / f"{shard}.json").read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def write_shard(
    path: pathlib.Path, examples: Iterable[Mapping[str, bytes | list[bytes]]]
) -> tuple[int, int]:
    """Writes records to a file that has its name when it is complete; returns number and bytes."""
    part = path.with_name(f"{path.name}.part")
    # Each record for itself, to be read alone; PNG and JPEG are compressed already.
    writer = ArrayRecordWriter(os.fspath(part), "group_size:1,uncompressed")
    count = num_bytes = 0
    try:
        for example in examples:
            record = serialized(example)
            writer.write(record)
            count, num_bytes = count + 1, num_bytes + len(record)
    finally:
        writer.close()
    part.rename(path)
    return count, num_bytes


def write_note(notes: pathlib.Path, shard: str, note: Note) -> None:
    """Makes a shard count."""
    notes.mkdir(exist_ok=True)
    part = notes / f"{shard}.part"
    part.write_text(json.dumps(dataclasses.asdict(note)))
    part.rename(notes / f"{shard}.json")


def write_description(
    builder: tfds.core.DatasetBuilder, splits: Mapping[str, Sequence[Note]]
) -> None:
    """Writes what TFDS has to know to open the records of `builder`."""
    infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[note.examples for note in notes],
            num_bytes=sum(note.num_bytes for note in notes),
            filename_template=file_template(builder, split),
        )
        for split, notes in splits.items()
    ]
    builder.info.set_splits(SplitDict(infos))
    builder.info.write_to_directory(builder.data_path)


def file_template(builder: tfds.core.DatasetBuilder, split: str) -> tfds.core.ShardedFileTemplate:
    """How the files of a split are named."""
    return tfds.core.ShardedFileTemplate(
        data_dir=builder.data_path,
        dataset_name=builder.name,
        split=split,
        filetype_suffix="array_record",
    )


@dataclasses.dataclass(frozen=True)
class SplitStatistics:
    """Statistics over all pixels of a split.

    Attributes:
      num_examples: how many images there are.
      smallest: height and width of the smallest image, by area, in pixels.
      largest: those of the largest.
      class_shares: share of each of the K classes among the labelled pixels.
      ignored_share: share of ignored pixels among all.
      mean: mean red, green and blue, 0..255.
      std: their standard deviations.
    """

    num_examples: int
    smallest: tuple[int, int]
    largest: tuple[int, int]
    class_shares: tuple[float, ...]
    ignored_share: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


def measure_split(dataset: "PreparedSet", split: str) -> SplitStatistics:
    """Reads and decodes the whole split, once.

    Raises:
      UserError: the set has no such split, or a label holds a value that is no class.
    """
    records = dataset.records(split)
    sizes: set[tuple[int, int]] = set()
    labels = np.zeros(256, np.int64)
    colors = np.zeros((3, 256), np.int64)
    for example in records.decoded(range(len(records))):
        sizes.add(example["label"].shape)
        labels += np.bincount(example["label"].ravel(), minlength=256)
        for channel in range(3):
            colors[channel] += np.bincount(example["image"][..., channel].ravel(), minlength=256)
    if labels[dataset.num_classes : IGNORE_LABEL].any():
        value = dataset.num_classes + np.flatnonzero(labels[dataset.num_classes :])[0]
        raise UserError(
            f"split {split} of {dataset.directory} has labels of value {value}, but there are only "
            f"{dataset.num_classes} classes; remove it and prepare it again"
        )
    levels = np.arange(256)
    mean = colors @ levels / labels.sum()
    std = np.sqrt(colors @ levels**2 / labels.sum() - mean**2)
    return SplitStatistics(
        num_examples=len(records),
        smallest=min(sizes, key=np.prod),
        largest=max(sizes, key=np.prod),
        class_shares=tuple(labels[: dataset.num_classes] / max(labels[:IGNORE_LABEL].sum(), 1)),
        ignored_share=labels[IGNORE_LABEL] / labels.sum(),
        mean=tuple(mean),
        std=tuple(std),
    )


# Written last, before the set is moved to its place: what the records were made from.
RECEIPT = "kdjax.json"
_DESCRIPTIONS = ("dataset_info.json", "features.json", "metadata.json")  # of TFDS


@dataclasses.dataclass(frozen=True)
class PreparedSet:
    """A data set whose records lie on a disk of this machine.

    `palette` holds an RGB colour a class, `splits` the number of examples of each split.
    `fingerprint` is 16 hexadecimal digits that change with the content or order of the records,
    and `skipped` says, a line each, which damaged files the records were made without.
    """

    name: str
    directory: pathlib.Path
    class_names: tuple[str, ...]
    palette: UInt8[np.ndarray, "K 3"]
    fingerprint: str
    skipped: tuple[str, ...]
    _records: Mapping[str, Records] = dataclasses.field(repr=False)

    @property
    def num_classes(self) -> int:
        """K: labels are 0..K-1, and 255 where ignored."""
        return len(self.class_names)

    @property
    def splits(self) -> dict[str, int]:
        """Number of examples by split."""
        return {split: len(records) for split, records in self._records.items()}

    def records(self, split: str) -> Records:
        """The records of `split`, by index.

        Raises:
          UserError: the set has no such split.
        """
        if split not in self._records:
            raise UserError(
                f"data set {self.name} has no split {split!r}; it has {', '.join(self._records)}"
            )
        return self._records[split]


def open_directory(directory: pathlib.Path) -> PreparedSet:
    """Opens the complete set in a folder.

    Raises:
      UserError: a file of it is missing or damaged.
    """
    receipt = read_receipt(directory)
    for name in _DESCRIPTIONS:
        _read_json(directory, name)
    try:
        builder = tfds.builder_from_directory(directory)
        metadata = builder.info.metadata or {}
        return PreparedSet(
            name=builder.name,
            directory=directory,
            class_names=tuple(metadata["class_names"]),
            palette=np.asarray(metadata["palette"], np.uint8),
            fingerprint=receipt["fingerprint"],
            # Not in receipts from before files could be skipped.
            skipped=tuple(receipt.get("skipped", ())),
            _records=open_records(builder),
        )
    except UserError:
        raise
    # TFDS lets through whatever comes of files that say something else.
    except Exception as error:
        raise damaged(directory, f"{', '.join(_DESCRIPTIONS)}: {reason(error)}") from error


def open_records(builder: tfds.core.DatasetBuilder) -> dict[str, Records]:
    """The records of each split that a builder wrote."""
    return {
        split: Records([os.fspath(path) for path in info.filepaths], info.num_examples, split)
        for split, info in builder.info.splits.items()
    }


def read_receipt(directory: pathlib.Path) -> dict[str, Any]:
    """What a set was made from, its fingerprint, and what was left out.

    Raises:
      UserError: the file is damaged.
    """
    receipt = _read_json(directory, RECEIPT)
    if missing := {"made_from", "fingerprint"} - receipt.keys():
        raise damaged(directory, f"{RECEIPT} has no {min(missing)}")
    return receipt


def _read_json(directory: pathlib.Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads((directory / name).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise damaged(directory, f"{name} is missing") from error
    except ValueError as error:
        raise damaged(directory, f"{name} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise damaged(directory, f"{name} holds no object")
    return content


def fingerprint(records: Mapping[str, Records]) -> str:
    """16 hexadecimal digits of all examples, in their order; reads them all.

    Raises:
      UserError: one of them is damaged.
    """
    digest = hashlib.sha256()
    for split in sorted(records):
        digest.update(f"{split} {len(records[split])}\n".encode())
        for index in range(len(records[split])):
            # Field by field: a serialized example does not keep the order of its fields.
            try:
                example = tf.train.Example.FromString(*records[split].read_serialized([index]))
            except DecodeError as error:
                what = f"record {index} of split {split} is no example"
                raise damaged(records[split].directory, what) from error
            for key in ("name", "image", "label"):
                for value in example.features.feature[key].bytes_list.value:
                    digest.update(hashlib.sha256(value).digest())
    return digest.hexdigest()[:16]
