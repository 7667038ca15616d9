"""Prepares data sets, whole or not at all, and reads them again to verify."""

import contextlib
import errno
import io
import json
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds

from kdjax.data._tensorflow import tf
from kdjax.data.loading.records import Records
from kdjax.data.preparing import prepared
from kdjax.data.preparing.builder import (
    SegmentationBuilder,
    check_example,
    check_features,
    find_builder,
    metadata_of,
)
from kdjax.data.preparing.prepared import (
    RECEIPT,
    PreparedSet,
    fingerprint,
    open_directory,
    open_records,
    read_receipt,
)
from kdjax.data.preparing.tree import state_of_source
from kdjax.utils import imports
from kdjax.utils.classes import distinct_colors
from kdjax.utils.errors import UserError
from kdjax.utils.files import is_remote
from kdjax.utils.lock import Lock


def is_prepared(name: str, data_dir: str | os.PathLike[str]) -> bool:
    """Whether `data_dir` holds the complete set `name`, in its present version.

    Raises:
      UserError: there is no such data set.
    """
    return (directory_of(name, find_builder(name), data_dir) / RECEIPT).is_file()


def verify(name: str, data_dir: str | os.PathLike[str], **options: Any) -> PreparedSet:
    """Opens the prepared set `name` after reading all of its records again.

    Args:
      name: which data set.
      data_dir: where prepared sets are kept.
      **options: of `prepare`, such as `val_share`, that the set must have been made with.

    Raises:
      UserError: it has not been prepared, or with other options, or its records are not those
        that were written.
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
    """Makes the records of `name` in `data_dir`, or opens them where that was done before.

    A set takes its place in `data_dir` by one rename when it is complete. Whatever ends it before
    leaves at most finished shards, in a hidden folder, from which the next call continues if it has
    the same source and options; files that changed since are converted anew. A second process that
    prepares the same set logs that it waits for the first. A complete set stays as it is when its
    source changes, which is reported.

    Args:
      name: which data set, as `find_builder` takes it.
      data_dir: where prepared sets are kept.
      source: folder or archive with the original files; None for a set that is made. Of a TFDS
        builder with MANUAL_DOWNLOAD_INSTRUCTIONS, its `dl_manager.manual_dir`.
      skip_damaged: whether files that cannot be read are left out, instead of ending it all.
      report: called with each line of what was found, before anything is converted.
      **options: what the builder takes beside its source, such as `ignore` of `folder`; of all
        that have a source, `tiles`: hold PNG images in tiles, of which a crop decodes a part.

    Raises:
      UserError: the source is not what the builder expects, `data_dir` cannot be written to or
        is full, or it holds the set already, but made from another source or with other
        options.
    """
    builder_class = find_builder(name)
    # The others are TFDS builders that know nothing of kdjax.
    native = issubclass(builder_class, SegmentationBuilder)
    from_files = needs_source(builder_class)
    takes = (
        *(builder_class.OPTIONS if native else ()),
        *(("tiles",) if native and from_files else ()),
    )
    if unknown := sorted(options.keys() - set(takes)):
        allowed = ", ".join(takes) or "none"
        raise UserError(f"data set {name} takes no option {unknown[0]!r}; it takes: {allowed}")
    if from_files:
        if source is None:
            raise UserError(f"data set {name} is made from files: name their folder by --source")
        options["source"] = os.path.realpath(_possible(source, "--source"))
    elif source is not None:
        raise UserError(f"data set {name} is generated: leave --source out")
    made_from = json.loads(json.dumps(options))
    if native and from_files:
        options["skip_damaged"] = skip_damaged
    directory = directory_of(name, builder_class, data_dir)
    with _lock(directory.parent):
        if not (directory / RECEIPT).is_file():
            _write(builder_class, options, directory, made_from, report)
        else:
            _compare(directory, made_from, report)
    return open_directory(directory)


def _compare(
    directory: pathlib.Path, made_from: dict[str, Any], report: Callable[[str], None]
) -> None:
    """Raises where a set was made from something else; reports where that has changed since."""
    receipt = read_receipt(directory)
    if (before := receipt["made_from"]) != made_from:
        raise UserError(
            f"{directory} was made from {before}, not from {made_from}; "
            "remove it, or prepare into another --data_dir"
        )
    # The one is not in older receipts, and the other goes with the source.
    states = receipt.get("source_state"), _source_state(directory, made_from)
    if None not in states and states[0] != states[1]:
        report(
            f"{made_from['source']} has changed since {directory} was made from it; remove that to "
            "prepare the set anew"
        )


def _source_state(directory: pathlib.Path, made_from: dict[str, Any]) -> str | None:
    """What `tree.state_of_source` says now; None of a set that has no source, or lost it."""
    source = pathlib.Path(made_from.get("source", ""))
    if "source" not in made_from or not source.exists():
        return None
    return state_of_source(source, beside=directory.parent)


def _write(
    builder_class: type[tfds.core.GeneratorBasedBuilder],
    options: dict[str, Any],
    directory: pathlib.Path,
    made_from: dict[str, Any],
    report: Callable[[str], None],
) -> None:
    staging = directory.parent / ".incomplete"
    # May have been left by a process that was killed; only a receipt makes a set complete.
    shutil.rmtree(directory, ignore_errors=True)
    begun = _begin(staging, {"version": directory.name, **made_from})
    tfds.disable_progress_bar()
    source_state = _source_state(directory, made_from)
    try:
        place: dict[str, Any] = {"data_dir": staging, "file_format": "array_record"}
        if issubclass(builder_class, SegmentationBuilder):
            builder = builder_class(**place, **options)
            for line in builder.findings:
                report(line)
            class_names = builder.class_names
            download: dict[str, Any] = {}
        else:
            builder = builder_class(**place)
            class_names = check_features(builder)
            config = tfds.download.DownloadConfig(manual_dir=options.get("source"))
            download = {"download_config": config}
        if begun:
            report(f"continues: {begun} shards of an interrupted preparation are there")
        # TFDS announces the folder that it writes to, which is not where the set will be.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(**download)
        written = pathlib.Path(builder.data_path)
        records = open_records(builder)
        if not isinstance(builder, SegmentationBuilder):
            _check_examples(records, len(class_names))
            palette = distinct_colors(len(class_names))
            metadata_of(class_names, palette).save_metadata(builder.data_path)
        receipt = {
            "made_from": made_from,
            "source_state": source_state,
            "fingerprint": fingerprint(records),
            "skipped": builder.skipped if isinstance(builder, SegmentationBuilder) else [],
        }
        (written / RECEIPT).write_text(json.dumps(receipt, indent=1) + "\n")
        written.rename(directory)
        shutil.rmtree(staging)
    except (OSError, RuntimeError) as error:
        # array_record says so in the text of a RuntimeError.
        if any(
            getattr(error, "errno", None) == code or os.strerror(code) in str(error)
            for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        ):
            raise UserError(
                f"no space left for {directory}; make room, or name another --data_dir"
            ) from error
        raise
    finally:
        # What is finished of it, the next call takes over.
        if not _finished_shards(staging):
            shutil.rmtree(staging, ignore_errors=True)


def _check_examples(records: Mapping[str, Records], num_classes: int) -> None:
    for split in records.values():
        for index in range(len(split)):
            feature = tf.train.Example.FromString(*split.read_serialized([index])).features.feature
            example = {key: feature[key].bytes_list.value[0] for key in ("image", "label", "name")}
            check_example(example, num_classes)


def _begin(staging: pathlib.Path, made_from: dict[str, Any]) -> int:
    """Makes the folder of a preparation; returns how many shards an earlier one left in it."""
    note = staging / RECEIPT
    begun = _finished_shards(staging)
    if not begun or not _holds(note, made_from):
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        note.write_text(json.dumps(made_from))
        return 0
    # The description of the records is written last, and may have been cut. TFDS would read it.
    for description in staging.glob("*/*/*.json"):
        description.unlink()
    return begun


def _holds(note: pathlib.Path, made_from: dict[str, Any]) -> bool:
    try:
        return json.loads(note.read_text()) == made_from
    except (FileNotFoundError, ValueError):
        return False


def _finished_shards(staging: pathlib.Path) -> int:
    return len(list((staging / prepared.NOTES).glob("*.json")))


def needs_source(builder_class: type[tfds.core.GeneratorBasedBuilder]) -> bool:
    """Whether a builder makes its records from files that have to be named."""
    if issubclass(builder_class, SegmentationBuilder):
        return builder_class.NEEDS_SOURCE
    return builder_class.MANUAL_DOWNLOAD_INSTRUCTIONS is not None


def not_prepared(
    name: str,
    builder_class: type[tfds.core.GeneratorBasedBuilder],
    data_dir: str | os.PathLike[str],
) -> UserError:
    """What is said where a set is asked for that is not there: the command that makes it."""
    wanted = directory_of(name, builder_class, data_dir)
    others = sorted(path.parent.name for path in wanted.parent.glob(f"*/{RECEIPT}"))
    lacks = (
        f"data set {name} in {data_dir} is of version {others[-1]}, and this kdjax reads "
        f"{wanted.name}; make it anew"
        if others
        else f"data set {name} has not been prepared in {data_dir}; run"
    )
    source = " --source DIR" if needs_source(builder_class) else ""
    return UserError(f"{lacks}: python -m kdjax prepare {name}{source} --data_dir {data_dir}")


def directory_of(
    name: str,
    builder_class: type[tfds.core.GeneratorBasedBuilder],
    data_dir: str | os.PathLike[str],
) -> pathlib.Path:
    """Where the records of a set lie, or would.

    Raises:
      UserError: `data_dir` can be no local folder.
    """
    if is_remote(data_dir):
        raise UserError(
            f"data_dir {data_dir} is not a local folder: records are read by random access, "
            "so copy the prepared set to a disk of this machine"
        )
    root = pathlib.Path(_possible(data_dir, "data_dir"))
    # With a dot, which no name of a built-in set has.
    return root / name.replace(imports.SEPARATOR, ".") / str(builder_class.VERSION)


def _possible(path: str | os.PathLike[str], what: str) -> str:
    """The path, with the home folder for `~`.

    Raises:
      UserError: no file can be there; `what` names it.
    """
    expanded = os.path.expanduser(os.fspath(path))
    if not expanded:
        raise UserError(f"{what} is empty; name a folder")
    try:
        expanded.encode()
        os.stat(expanded)
    except UnicodeEncodeError as error:
        raise UserError(f"{what} {expanded!a} is not UTF-8; rename it") from error
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{what} {expanded!a}: {reason}") from error
    return expanded


@contextlib.contextmanager
def _lock(directory: pathlib.Path) -> Iterator[None]:
    """Lets one process at a time work in `directory`; a folder that stays empty is removed.

    Raises:
      UserError: the directory cannot be written to.
    """
    lock = Lock(directory / ".lock", f"data_dir {directory}", "stop it, or wait for its end")
    try:
        lock.acquire(patience=math.inf)
    except OSError as error:
        raise UserError(f"cannot write to data_dir: {directory}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()
