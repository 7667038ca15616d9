"""Preparing that was stopped: continued shard by shard, and the same to the last byte."""

import multiprocessing
import os
import pathlib
import re
import textwrap
import threading
import time

import numpy as np
import pytest
import warm
from PIL import Image

from kdjax.data import sets
from kdjax.data.preparing import prepared
from kdjax.data.preparing.builder import find_builder
from kdjax.utils.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
IMAGES = 7


@pytest.fixture
def source(tmp_path):
    generator = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (tmp_path / "source" / kind / "train").mkdir(parents=True)
    for number in range(IMAGES):
        image = generator.integers(0, 256, (6, 8, 3)).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / f"source/images/train/{number}.png")
        Image.fromarray(image[..., 0] % 3).save(tmp_path / f"source/labels/train/{number}.png")
    return tmp_path / "source"


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(prepared, "SHARD_SIZE", 2)


def prepare(source, data_dir, **options):
    return sets.prepare("folder", data_dir, source=source, **options)


def contents(dataset):
    return {path.name: path.read_bytes() for path in dataset.directory.iterdir()}


def stop_at(monkeypatch, name, error=KeyboardInterrupt):
    """Makes the conversion of one image fail; returns the names of those converted."""
    builder, converted = find_builder("folder"), []
    convert = builder._convert

    def stops(self, pair):
        if pair.name == name:
            raise error
        converted.append(pair.name)
        return convert(self, pair)

    monkeypatch.setattr(builder, "_convert", stops)
    return converted


def interrupted(source, data_dir, monkeypatch, name="4", error=KeyboardInterrupt, **options):
    with monkeypatch.context() as patch:
        stop_at(patch, name, error)
        with pytest.raises((KeyboardInterrupt, UserError)):
            prepare(source, data_dir, **options)
    assert not sets.is_prepared("folder", data_dir)


def test_what_is_finished_is_not_done_again_and_every_byte_is_the_same(
    source, tmp_path, monkeypatch
):
    whole = contents(prepare(source, tmp_path / "whole"))
    interrupted(source, tmp_path / "data", monkeypatch)
    converted, lines = stop_at(monkeypatch, None), []
    dataset = prepare(source, tmp_path / "data", report=lines.append)
    assert sorted(converted) == ["4", "5", "6"]
    assert lines == ["continues: 2 shards of an interrupted preparation are there"]
    assert contents(dataset) == whole
    assert len([name for name in whole if "array_record" in name]) == 4
    assert sorted(os.listdir(tmp_path / "data" / "folder")) == ["1.0.0"]


def test_a_full_disk_loses_no_finished_shard(source, tmp_path, monkeypatch):
    interrupted(source, tmp_path, monkeypatch, error=OSError(28, "No space left on device"))
    converted = stop_at(monkeypatch, None)
    assert prepare(source, tmp_path).splits == {"train": IMAGES}
    assert "0" not in converted


def test_a_file_that_changed_is_converted_anew(source, tmp_path, monkeypatch):
    interrupted(source, tmp_path / "data", monkeypatch)
    Image.new("RGB", (8, 6), (9, 8, 7)).save(source / "images/train/1.png")
    converted = stop_at(monkeypatch, None)
    dataset = prepare(source, tmp_path / "data")
    assert sorted(converted) == ["0", "1", "4", "5", "6"]
    assert contents(dataset) == contents(prepare(source, tmp_path / "whole"))


def test_another_table_of_classes_converts_all_anew(source, tmp_path, monkeypatch):
    (source / "classes.csv").write_text("value,name\n0,a\n1,b\n2,c\n")
    interrupted(source, tmp_path / "data", monkeypatch)
    (source / "classes.csv").write_text("value,name\n2,c c\n1,b\n0,a\n")
    dataset = prepare(source, tmp_path / "data")
    assert contents(dataset) == contents(prepare(source, tmp_path / "whole"))


def test_other_options_begin_anew(source, tmp_path, monkeypatch):
    interrupted(source, tmp_path, monkeypatch)
    converted = stop_at(monkeypatch, None)
    prepare(source, tmp_path, ignore=[2])
    assert len(converted) == IMAGES


def test_other_shares_begin_anew_and_mix_nothing(source, tmp_path, monkeypatch):
    for kind in ("images", "labels"):
        for path in sorted((source / kind / "train").iterdir()):
            path.rename(source / kind / path.name)
        (source / kind / "train").rmdir()
    # The hash of 4 puts it into val, the last split, by either share.
    interrupted(source, tmp_path / "data", monkeypatch, val_share=0.3)
    dataset = prepare(source, tmp_path / "data", val_share=0.6)
    assert contents(dataset) == contents(prepare(source, tmp_path / "whole", val_share=0.6))
    interrupted(source, tmp_path / "again", monkeypatch, val_share=0.6)
    lines = []
    prepare(source, tmp_path / "again", val_share=0.6, report=lines.append)
    assert lines[0].startswith("continues: ")


def test_what_was_left_out_is_remembered_and_never_forgiven(source, tmp_path, monkeypatch):
    (source / "images/train/0.png").write_bytes(b"")
    with monkeypatch.context() as patch:
        stop_at(patch, "4")
        with pytest.raises(KeyboardInterrupt):
            prepare(source, tmp_path, skip_damaged=True)
    with pytest.raises(UserError, match=r"0\.png cannot be read"):
        prepare(source, tmp_path)
    dataset = prepare(source, tmp_path, skip_damaged=True)
    assert dataset.splits == {"train": IMAGES - 1}
    (line,) = dataset.skipped
    assert "0.png" in line


KILLED = """
    import sys, time
    from kdjax.data import sets
    from kdjax.data.preparing import prepared
    from kdjax.data.preparing.builder import find_builder
    prepared.SHARD_SIZE = 2
    builder = find_builder("folder")
    convert = builder._convert
    def slow(self, pair):
        if pair.name == "5":
            print("half", file=sys.__stdout__, flush=True)
            time.sleep(600)
        return convert(self, pair)
    builder._convert = slow
    sets.prepare("folder", sys.argv[2], source=sys.argv[1])
"""


INTERRUPTED = """
    import signal, sys
    from kdjax.cli import prepare
    from kdjax.cli import command
    from kdjax.data import sets
    from kdjax.data.preparing import prepared
    from kdjax.data.preparing.builder import find_builder
    prepared.SHARD_SIZE = 2
    builder = find_builder("folder")
    convert = builder._convert
    # Where this runs in the background, it is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    def interrupt(self, pair):
        if pair.name == "5":
            signal.raise_signal(signal.SIGINT)
        return convert(self, pair)
    builder._convert = interrupt
    command.run(prepare.main, words=1)
"""


def test_an_interrupted_command_says_so_and_is_continued(source, tmp_path):
    script = tmp_path / "prepare.py"
    script.write_text(textwrap.dedent(INTERRUPTED))
    data = tmp_path / "data"
    stopped = warm.run(
        *(script, "folder", "--source", source, "--data_dir", data),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert stopped.returncode == 130, stopped.stderr
    assert stopped.stderr == "\nkdjax.prepare: interrupted\n"
    assert not sets.is_prepared("folder", data)
    lines = []
    dataset = prepare(source, data, report=lines.append)
    assert lines[0] == "continues: 2 shards of an interrupted preparation are there"
    assert dataset.splits == {"train": IMAGES}


def test_a_killed_process_is_continued(source, tmp_path, capsys):
    command = ["-c", textwrap.dedent(KILLED), source, tmp_path / "data"]
    process = warm.Process(command, env=os.environ)
    while process.output() != "half\n":
        assert process.poll() is None, process.communicate(timeout=0)
        time.sleep(0.01)
    lines = []
    # Meanwhile, a second process logs that it waits.
    second = threading.Thread(
        target=lambda: prepare(source, tmp_path / "data", report=lines.append)
    )
    second.start()
    said, deadline = "", time.monotonic() + 60
    while "\n" not in said:
        assert time.monotonic() < deadline
        time.sleep(0.01)
        said += capsys.readouterr().out
    assert re.search(f"data_dir {tmp_path}/data/folder is in use: .*; this process waits", said)
    process.kill()
    second.join()
    assert lines[0] == "continues: 2 shards of an interrupted preparation are there"
    dataset = sets.open_set("folder", tmp_path / "data")
    assert contents(dataset) == contents(prepare(source, tmp_path / "whole"))


@pytest.mark.thorough
def test_a_record_is_the_same_in_every_process():
    example = {"image": b"1", "label": b"2", "name": [b"three", b"four"]}
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(prepared.serialized, (example,)) == prepared.serialized(example)


# A command where no file grows beyond 500 bytes, and a write fails as it does on a full disk.
WITHOUT_ROOM = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
sys.argv.insert(1, "prepare")
runpy.run_module("kdjax", run_name="__main__", alter_sys=True)
"""


def test_a_folder_without_room_is_refused_in_one_line(source, tmp_path):
    data = tmp_path / "data"
    run = warm.run("-c", WITHOUT_ROOM, "folder", "--source", source, "--data_dir", data)
    assert run.returncode == 2, run.stderr
    assert run.stderr.count("\n") == 1
    assert not sets.is_prepared("folder", data)
    assert run.stdout == ""
