"""Preparing that is interrupted: nothing half-written stays, and the next call starts again."""

import errno
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


def prepare(source, data_dir, **options):
    return sets.prepare("folder", data_dir, source=source, **options)


def contents(dataset):
    return {path.name: path.read_bytes() for path in dataset.directory.iterdir()}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left")])
def test_an_interruption_leaves_nothing_and_changes_nothing(source, tmp_path, monkeypatch, error):
    builder = find_builder("folder")
    convert = builder._convert

    def stops(self, pair):
        if pair.name == "4":
            raise error
        return convert(self, pair)

    with monkeypatch.context() as patch:
        patch.setattr(builder, "_convert", stops)
        with pytest.raises((KeyboardInterrupt, UserError)):
            prepare(source, tmp_path / "data")
    assert not sets.is_prepared("folder", tmp_path / "data")
    assert not (tmp_path / "data").exists()
    dataset = prepare(source, tmp_path / "data")
    assert contents(dataset) == contents(prepare(source, tmp_path / "whole"))
    assert os.listdir(tmp_path / "data" / "folder") == ["1.0.0"]


INTERRUPTED = """
    import signal, sys
    from kdjax.cli import command, prepare
    from kdjax.data.preparing.builder import find_builder
    builder = find_builder("folder")
    convert = builder._convert
    sys.argv[0] = "kdjax prepare"
    # A process in the background ignores the signal by default.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    def interrupt(self, pair):
        if pair.name == "5":
            signal.raise_signal(signal.SIGINT)
        return convert(self, pair)
    builder._convert = interrupt
    command.run(prepare.main, words=1)
"""


def test_an_interrupted_command_says_so(source, tmp_path):
    script = tmp_path / "prepare.py"
    script.write_text(textwrap.dedent(INTERRUPTED))
    stopped = warm.run(
        *(script, "folder", "--source", source, "--data_dir", tmp_path / "data"),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert stopped.returncode == 130, stopped.stderr
    assert stopped.stderr == "\nkdjax prepare: interrupted\n"
    assert not (tmp_path / "data").exists()


KILLED = """
    import sys, time
    from kdjax.data import sets
    from kdjax.data.preparing.builder import find_builder
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


def test_a_second_process_waits_and_replaces_what_a_killed_one_left(source, tmp_path, capsys):
    command = ["-c", textwrap.dedent(KILLED), source, tmp_path / "data"]
    process = warm.Process(command, env=os.environ)
    while process.output() != "half\n":
        assert process.poll() is None, process.communicate(timeout=0)
        time.sleep(0.01)
    second = threading.Thread(target=lambda: prepare(source, tmp_path / "data"))
    second.start()
    said, deadline = "", time.monotonic() + 60
    while "\n" not in said:
        assert time.monotonic() < deadline
        time.sleep(0.01)
        said += capsys.readouterr().out
    assert re.search(f"data_dir {tmp_path}/data/folder is in use: ", said)
    process.kill()
    second.join()
    dataset = sets.open_set("folder", tmp_path / "data")
    assert contents(dataset) == contents(prepare(source, tmp_path / "whole"))
    assert os.listdir(tmp_path / "data" / "folder") == ["1.0.0"]


# A command in which no file grows beyond 500 bytes, so that writes fail as on a full disk.
WITHOUT_ROOM = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
sys.argv.insert(1, "prepare")
runpy.run_module("kdjax", run_name="__main__", alter_sys=True)
"""


def test_a_full_disk_is_reported_in_one_line(source, tmp_path):
    data = tmp_path / "data"
    run = warm.run("-c", WITHOUT_ROOM, "folder", "--source", source, "--data_dir", data)
    assert run.returncode == 2, run.stderr
    assert run.stderr.count("\n") == 1
    assert not sets.is_prepared("folder", data)
    assert run.stdout == ""
