"""What a run does whose disk is full, or whose checkpoints are damaged: in processes of their own.

Orbax leaves coroutines of what it gave up, and TensorStore its answers; in a process of tests they
would come up in whichever test runs when they are collected.
"""

import pathlib
import re
import resource
import shutil
import time

import pytest
import tiny_run

from kdjax.data import sets
from kdjax.models import NETWORKS, serialization

NETWORKS["tiny"] = "tiny:create"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("data")
    tiny_run.write_images(source)
    sets.prepare("folder", target, source=source)
    return target


def run(data, workdir, **options):
    """The exit status, the output and the errors of a run in `workdir`."""
    (ended,) = tiny_run.finish([tiny_run.start(data, workdir, **options)])
    return ended


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The directory of a run that nothing happened to: checkpoints of steps 5 (the best), 8, 10."""
    workdir = tmp_path_factory.mktemp("whole")
    status, _, errors = run(data, workdir)
    assert (status, errors) == (0, "")
    return workdir


@pytest.mark.thorough
def test_a_disk_that_fills_up_keeps_the_checkpoint_before(data, whole, tmp_path):
    """Files may not grow beyond a size: writing fails as on a full disk."""
    child = tiny_run.start(data, tmp_path, pause=0.4)
    tiny_run.wait_for_step(tmp_path, 3, [child])
    while not (tmp_path / "checkpoints" / "2").exists():
        time.sleep(0.05)
    resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (10_000, 10_000))
    ((status, _, errors),) = tiny_run.finish([child])
    assert status == 2
    message = rf"kdjax train: error: cannot write {tmp_path}/checkpoints: File too large; "
    assert re.fullmatch(message + r"the checkpoint of step \d is kept\n", errors), errors
    status, output, errors = run(data, tmp_path)
    assert (status, errors) == (0, "")
    assert "continues after step" in output
    assert not list((tmp_path / "checkpoints").glob("*tmp*"))
    tiny_run.assert_same(tmp_path, tiny_run.records(whole))


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def damaged_copy(run, target, damages):
    """Copies a run that is to end once more, its checkpoints damaged: by step, what is done."""
    shutil.copytree(run, target, dirs_exist_ok=True)
    (target / "result.json").unlink()
    for step, damage in damages.items():
        arrays = [p for p in (target / "checkpoints" / str(step)).rglob("d/*") if p.is_file()]
        for path in arrays:
            if path.stat().st_size > 1000:
                damage(path)


def test_damaged_checkpoints_are_set_aside_for_the_one_before(data, whole, tmp_path):
    damaged_copy(whole, tmp_path, {10: flip_a_bit, 8: cut_short})
    status, output, errors = run(data, tmp_path)
    assert (status, errors) == (0, "")
    for step in (10, 8):
        assert re.search(rf"checkpoints/{step}: this checkpoint is damaged \(.*\)", output)
        assert (tmp_path / "checkpoints" / f"damaged-{step}").is_dir()
    assert "continues after step 5" in output
    tiny_run.assert_same(tmp_path, tiny_run.records(whole))


def test_no_checkpoint_is_whole(data, whole, tmp_path):
    damaged_copy(whole, tmp_path, {10: cut_short, 8: flip_a_bit, 5: pathlib.Path.unlink})
    status, _, errors = run(data, tmp_path)
    assert status == 2
    (line,) = errors.splitlines()
    assert line.count("this checkpoint is damaged") == 3
    assert "no other is left. To use one of damaged-10, damaged-5, damaged-8 all the same" in line
    assert line.endswith(f"To begin again at step 0, remove {tmp_path}/checkpoints")


@pytest.mark.thorough
@pytest.mark.parametrize("content", ["", "[]", '{"scores"', None])
def test_a_damaged_result_or_student_is_made_again(data, whole, tmp_path, content):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    if content is None:
        shutil.rmtree(tmp_path / "student")
    else:
        (tmp_path / "result.json").write_text(content)
    status, output, errors = run(data, tmp_path)
    assert (status, errors) == (0, "")
    assert "is damaged: the run is finished again from its last checkpoint" in output
    assert "continues after step 10" in output
    tiny_run.assert_same(tmp_path, tiny_run.records(whole))
    assert serialization.load(tmp_path)[2] == serialization.load(whole)[2]


def test_a_damaged_result_without_a_checkpoint_is_refused(data, whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    (tmp_path / "result.json").write_text("")
    shutil.rmtree(tmp_path / "checkpoints")
    status, _, errors = run(data, tmp_path)
    assert status == 2
    (line,) = errors.splitlines()
    assert line.endswith(
        "is damaged, and there is no checkpoint to finish the run from; remove "
        f"{tmp_path} to train again"
    )
