"""Writes a split in shards, each whole or not at all, so that what was stopped can be continued.

A shard counts once its note stands beside it: written last, it says which files the shard was made
from, in what state, and what was left out.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core.splits import SplitDict

from kdjax.data._tensorflow import tf
from kdjax.data.tree import File

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


def describe(builder: tfds.core.DatasetBuilder, splits: Mapping[str, Sequence[Note]]) -> None:
    """Writes what TFDS has to know to open the records of `builder`."""
    infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[note.examples for note in notes],
            num_bytes=sum(note.num_bytes for note in notes),
            filename_template=template(builder, split),
        )
        for split, notes in splits.items()
    ]
    builder.info.set_splits(SplitDict(infos))
    builder.info.write_to_directory(builder.data_path)


def template(builder: tfds.core.DatasetBuilder, split: str) -> tfds.core.ShardedFileTemplate:
    """How the files of a split are named."""
    return tfds.core.ShardedFileTemplate(
        data_dir=builder.data_path,
        dataset_name=builder.name,
        split=split,
        filetype_suffix="array_record",
    )
