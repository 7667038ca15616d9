"""Prepares data sets, completely or not at all, and verifies prepared ones."""

import contextlib
import errno
import io
import json
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow_datasets as tfds

from kdjax.data.preparing.builder import SegmentationBuilder, find_builder, metadata_of
from kdjax.data.preparing.plain_builder import check_examples, class_names_of
from kdjax.data.preparing.prepared import (
    RECEIPT,
    PreparedSet,
    fingerprint,
    open_directory,
    open_records,
    read_receipt,
    write_class_counts,
)
from kdjax.data.preparing.tree import state_of_source
from kdjax.utils import imports
from kdjax.utils.classes import distinct_colors
from kdjax.utils.errors import UserError
from kdjax.utils.files import is_remote
from kdjax.utils.lock import Lock

_Builder = type[tfds.core.GeneratorBasedBuilder]
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_prepared(name: str, data_dir: str | os.PathLike[str]) -> bool:
    """Returns True if `data_dir` holds the complete set `name` in its current version."""
    return (directory_of(name, find_builder(name), data_dir) / RECEIPT).is_file()


def verify(name: str, data_dir: str | os.PathLike[str], **options: Any) -> PreparedSet:
    """Opens the prepared set `name` after checking all of its records.

    Args:
      name: the data set.
      data_dir: the folder of prepared sets.
      **options: options of `prepare`, such as `val_share`, that the set must have been made with.

    Raises:
      UserError: if the set was not prepared, was prepared with other options, or has changed.
    """
    builder_class = find_builder(name)
    if not is_prepared(name, data_dir):
        raise not_prepared(name, builder_class, data_dir)
    directory = directory_of(name, builder_class, data_dir)
    made_from = read_receipt(directory)["made_from"]
    for option, value in options.items():
        if made_from.get(option) != json.loads(json.dumps(value)):
            raise UserError(
                f"{directory} was made from {made_from}, not with {option} {value}; leave that "
                "out, or name another --data_dir"
            )
    dataset = open_directory(directory)
    found = fingerprint({split: dataset.records(split) for split in dataset.splits})
    if found != dataset.fingerprint:
        raise UserError(
            f"the records in {directory} have changed: their fingerprint is {found}, and was "
            f"{dataset.fingerprint}; remove {directory} and prepare it again"
        )
    return dataset


def prepare(
    name: str,
    data_dir: str | os.PathLike[str],
    *,
    source: str | os.PathLike[str] | None = None,
    skip_damaged: bool = False,
    report: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> PreparedSet:
    """Writes the records of `name` to `data_dir`, or opens them if they exist.

    A complete set is moved to its place by one rename. An interrupted preparation leaves nothing,
    and the next call starts again. A second process that prepares the same set waits for the first.
    A complete set does not change when its source does, but `report` gets a line about it.

    Args:
      name: the data set, as `find_builder` takes it.
      data_dir: the folder of prepared sets.
      source: a folder or archive with the original files; None for a set that is generated. For a
        TFDS builder with MANUAL_DOWNLOAD_INSTRUCTIONS, its `dl_manager.manual_dir`.
      skip_damaged: whether files that cannot be read are skipped. By default, they are an error.
      report: called with each line on what was found, before the conversion starts.
      **options: options of the builder, such as `ignore` of `folder`. Every builder with a source
        takes `tiles`, which stores large images in PNG tiles, so that a crop decodes a part.

    Raises:
      UserError: if the source is not what the builder expects, `data_dir` cannot be written to or
        is full, or it holds the set already, made from another source or with other options.
    """
    builder_class = find_builder(name)
    native = issubclass(builder_class, SegmentationBuilder)
    from_files = needs_source(builder_class)
    allowed = []
    if native:
        allowed = [*builder_class.OPTIONS, *(["tiles"] if from_files else [])]
    if unknown := sorted(options.keys() - set(allowed)):
        raise UserError(
            f"data set {name} takes no option {unknown[0]!r}; it takes: "
            f"{', '.join(allowed) or 'none'}"
        )
    if from_files and source is None:
        raise UserError(f"data set {name} is made from files: name their folder by --source")
    if source is not None:
        if not from_files:
            raise UserError(f"data set {name} is generated: leave --source out")
        options["source"] = os.path.realpath(_expanded(source, "--source"))
    made_from = json.loads(json.dumps(options))
    if native and from_files:
        options["skip_damaged"] = skip_damaged
    directory = directory_of(name, builder_class, data_dir)
    with _lock(directory.parent):
        if (directory / RECEIPT).is_file():
            _compare(directory, made_from, report)
        else:
            _write(builder_class, options, directory, made_from, report)
    return open_directory(directory)


def _compare(
    directory: pathlib.Path, made_from: dict[str, Any], report: Callable[[str], None]
) -> None:
    """Raises an error if a set was made from something else. Reports a changed source."""
    receipt = read_receipt(directory)
    if (before := receipt["made_from"]) != made_from:
        raise UserError(
            f"{directory} was made from {before}, not from {made_from}; "
            "remove it, or prepare into another --data_dir"
        )
    # Old receipts hold no state, and a source may be gone.
    states = receipt.get("source_state"), _source_state(directory, made_from)
    if None not in states and states[0] != states[1]:
        report(
            f"{made_from['source']} has changed since {directory} was made from it; remove "
            f"{directory} to prepare the set again"
        )


def _source_state(directory: pathlib.Path, made_from: dict[str, Any]) -> str | None:
    """Returns the state of the source, or None if there is no source."""
    source = pathlib.Path(made_from.get("source", ""))
    if "source" not in made_from or not source.exists():
        return None
    return state_of_source(source, excluded=directory.parent)


def _write(
    builder_class: _Builder,
    options: dict[str, Any],
    directory: pathlib.Path,
    made_from: dict[str, Any],
    report: Callable[[str], None],
) -> None:
    """Writes the records to a temporary folder, and moves them to `directory` when complete."""
    staging = directory.parent / ".incomplete"
    # Killed processes leave these folders. Only a receipt makes a set complete.
    for leftover in (directory, staging):
        shutil.rmtree(leftover, ignore_errors=True)
    tfds.disable_progress_bar()
    source_state = _source_state(directory, made_from)
    try:
        builder = _build(builder_class, staging, options, report)
        receipt = {
            "made_from": made_from,
            "source_state": source_state,
            "fingerprint": fingerprint(open_records(builder)),
            "skipped": builder.skipped if isinstance(builder, SegmentationBuilder) else [],
        }
        written = pathlib.Path(builder.data_path)
        (written / RECEIPT).write_text(json.dumps(receipt, indent=1) + "\n")
        write_class_counts(open_directory(written))
        written.rename(directory)
    except (OSError, RuntimeError, shutil.Error) as error:
        # array_record and shutil give the reason in the text only.
        codes = (getattr(error, "errno", None) == code for code in _DISK_FULL)
        if any(codes) or any(os.strerror(code) in str(error) for code in _DISK_FULL):
            raise UserError(
                f"no space left for {directory}; free some, or name another --data_dir"
            ) from error
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _build(
    builder_class: _Builder,
    staging: pathlib.Path,
    options: dict[str, Any],
    report: Callable[[str], None],
) -> tfds.core.GeneratorBasedBuilder:
    """Writes the records by TFDS, and checks those of a builder that does not know kdjax."""
    place: dict[str, Any] = {"data_dir": staging, "file_format": "array_record"}
    class_names: list[str] = []
    download: dict[str, Any] = {}
    if issubclass(builder_class, SegmentationBuilder):
        builder = builder_class(**place, **options)
        for line in builder.findings:
            report(line)
    else:
        builder = builder_class(**place)
        class_names = class_names_of(builder)
        config = tfds.download.DownloadConfig(manual_dir=options.get("source"))
        download = {"download_config": config}
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints the temporary folder.
        builder.download_and_prepare(**download)
    if class_names:
        check_examples(open_records(builder), len(class_names))
        palette = distinct_colors(len(class_names))
        metadata_of(class_names, palette).save_metadata(builder.data_path)
    return builder


def needs_source(builder_class: _Builder) -> bool:
    """Returns True if a builder converts files of the user."""
    if issubclass(builder_class, SegmentationBuilder):
        return builder_class.NEEDS_SOURCE
    return builder_class.MANUAL_DOWNLOAD_INSTRUCTIONS is not None


def not_prepared(name: str, builder_class: _Builder, data_dir: str | os.PathLike[str]) -> UserError:
    """Returns the error for a set that is not prepared, with the command that prepares it."""
    wanted = directory_of(name, builder_class, data_dir)
    others = sorted(path.parent.name for path in wanted.parent.glob(f"*/{RECEIPT}"))
    lacks = (
        f"data set {name} in {data_dir} is of version {others[-1]}, and this kdjax reads "
        f"{wanted.name}; prepare it again"
        if others
        else f"data set {name} has not been prepared in {data_dir}; run"
    )
    source = " --source DIR" if needs_source(builder_class) else ""
    return UserError(f"{lacks}: python -m kdjax prepare {name}{source} --data_dir {data_dir}")


def directory_of(
    name: str, builder_class: _Builder, data_dir: str | os.PathLike[str]
) -> pathlib.Path:
    """Returns the folder for the records of a set."""
    if is_remote(data_dir):
        raise UserError(
            f"data_dir {data_dir} is not a local folder: records are read by random access, "
            "so copy the prepared set to a disk of this machine"
        )
    # The names of built-in sets have no dot.
    folder = name.replace(imports.SEPARATOR, ".")
    return _expanded(data_dir, "data_dir") / folder / str(builder_class.VERSION)


def _expanded(path: str | os.PathLike[str], what: str) -> pathlib.Path:
    """Returns the path with the home folder for `~`."""
    if not os.fspath(path):
        raise UserError(f"{what} is empty; name a folder")
    return pathlib.Path(path).expanduser()


@contextlib.contextmanager
def _lock(directory: pathlib.Path) -> Iterator[None]:
    """Lets one process at a time work in `directory`. Removes the folder if it stays empty."""
    lock = Lock(directory / ".lock", f"data_dir {directory}", "stop it, or wait for its end")
    try:
        lock.acquire(patience=math.inf)
    except OSError as error:
        raise UserError(f"cannot write to data_dir: {directory}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()
