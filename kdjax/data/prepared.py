"""A prepared data set, as it is opened from its folder."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError
from jaxtyping import UInt8

from kdjax.data._tensorflow import reason, tf
from kdjax.data.records import Records, damaged
from kdjax.errors import UserError

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
                example = tf.train.Example.FromString(*records[split].read([index]))
            except DecodeError as error:
                what = f"record {index} of split {split} is no example"
                raise damaged(records[split].directory, what) from error
            for key in ("name", "image", "label"):
                for value in example.features.feature[key].bytes_list.value:
                    digest.update(hashlib.sha256(value).digest())
    return digest.hexdigest()[:16]
