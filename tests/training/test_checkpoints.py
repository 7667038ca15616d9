"""Checkpoints survive a power cut. Only damaged checkpoints are reported as damaged."""

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from orbax.checkpoint.path import deleter

from kdjax.experiment.workdir import Workdir
from kdjax.models import serialization
from kdjax.training import checkpoints as module
from kdjax.training.checkpoints import Checkpoints, Damaged
from kdjax.training.sharding import Placement
from kdjax.training.step import TrainState
from kdjax.utils.errors import UserError


def make_state(value=0.0, width=3, optimizer=None):
    params = {"student": {"kernel": jnp.full((2, width), value, jnp.float32)}, "terms": {}}
    optimizer = optimizer or optax.sgd(0.1, momentum=0.9)
    state = TrainState(
        step=jnp.array(1),
        seed=jnp.array(0),
        params=params,
        model_state={},
        opt_state=optimizer.init(params),
        terms={},
        ema=None,
    )
    return Placement().put_state(state)


def kernel(state):
    return np.asarray(state.params["student"]["kernel"])


def save_steps(directory, steps, scores=None):
    checkpoints = Checkpoints(directory, {})
    for step in steps:
        checkpoints.save(step, make_state(step), (scores or {}).get(step))
    checkpoints.close()


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoints")
    save_steps(directory, [10, 20])
    return directory


@pytest.fixture
def directory(two_steps, tmp_path):
    shutil.copytree(two_steps, tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def names(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize(
    ("state", "change"),
    [
        (
            make_state(width=4),
            r"params/student/kernel 'float32\[2, 3\]' \(now 'float32\[2, 4\]'\)",
        ),
        (make_state(optimizer=optax.adam(0.1)), r"opt_state/.* 'missing' \(now .*"),
        (
            dataclasses.replace(make_state(), model_state={"mean": jnp.zeros(5)}),
            r"model_state/mean 'missing' \(now 'float32\[5\]'\)",
        ),
    ],
)
def test_a_change_of_code_is_named_and_leaves_the_checkpoints(directory, state, change):
    with pytest.raises(UserError, match=change) as raised:
        Checkpoints(directory, {}).restore_latest(state)
    assert not isinstance(raised.value, Damaged)
    assert "made by other code" in str(raised.value)
    assert names(directory) == ["10", "20"]
    assert Checkpoints(directory, {}).restore_latest(make_state())[0] == 20


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ESTALE, "Stale file handle"),
        PermissionError(errno.EACCES, "Permission denied"),
        ValueError("PERMISSION_DENIED: Error opening file [os_error_code='13']"),
        AttributeError("module 'zarr' has no attribute 'open'"),
    ],
)
def test_an_error_that_is_not_of_the_data_leaves_the_checkpoints(directory, monkeypatch, error):
    class Failing:
        def __enter__(self):
            raise error

        def __exit__(self, *arguments):
            pass

    with monkeypatch.context() as patched:
        patched.setattr(module, "local_checkpointer", Failing)
        with pytest.raises(UserError, match=r"^cannot read .*/20: .*; the checkpoint is left as"):
            Checkpoints(directory, {}).restore_latest(make_state())
    assert names(directory) == ["10", "20"]
    assert Checkpoints(directory, {}).restore_latest(make_state())[0] == 20


def damage(directory, step):
    """Makes the checksum wrong. Other damage would leave open tasks in Orbax."""
    path = directory / str(step) / "identity" / "metadata"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"checksum": values["checksum"] ^ 1}))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("_METADATA", b""),
        ("metadata", None),
        ("metadata", b"[]"),
    ],
)
def test_a_file_that_is_missing_or_undecodable_is_damage(directory, name, content):
    for path in (directory / "20").rglob(name):
        path.unlink() if content is None else path.write_bytes(content)
    step, state, (remark,) = Checkpoints(directory, {}).restore_latest(make_state())
    assert step == 10
    assert kernel(state)[0, 0] == 10
    assert remark.startswith(f"{directory}/20: this checkpoint is damaged (")
    assert names(directory) == ["10", "damaged-20"]


def test_the_same_step_may_be_damaged_more_than_once(directory):
    for expected in ("damaged-20", "damaged-20-2", "damaged-20-3"):
        damage(directory, 20)
        assert Checkpoints(directory, {}).restore_latest(make_state())[0] == 10
        assert expected in names(directory)
        save_steps(directory, [20])


def test_a_run_with_only_damaged_checkpoints_does_not_begin_again_by_itself(directory):
    for step in (10, 20):
        damage(directory, step)
    way_out = (
        rf"no other is left\. To use one of damaged-10, damaged-20 all the same, rename it to its "
        rf"number\. To begin again at step 0, remove {directory}$"
    )
    for _ in range(2):
        with pytest.raises(UserError, match=way_out):
            Checkpoints(directory, {}).restore_latest(make_state())
    assert names(directory) == ["damaged-10", "damaged-20"]


def test_a_checkpoint_without_a_score_gets_one_and_is_not_written_again(directory):
    before = (directory / "20" / "_CHECKPOINT_METADATA").stat().st_mtime_ns
    save_steps(directory, [20], {20: 0.5})
    assert Checkpoints(directory, {}).best_step == 20
    assert (directory / "20" / "_CHECKPOINT_METADATA").stat().st_mtime_ns == before


class Disk:
    """Simulates a power cut: only files and directories after `os.fsync` survive."""

    def __init__(self, monkeypatch):
        self._contents, self._entries = {}, {}
        self._open = contextlib.ExitStack()
        self._sync = os.fsync
        monkeypatch.setattr(os, "fsync", self.sync)

    def sync(self, descriptor):
        self._sync(descriptor)
        path = pathlib.Path(f"/proc/self/fd/{descriptor}").resolve()
        inode = os.fstat(descriptor).st_ino
        if path.is_dir():
            self._entries[inode] = {entry.name: self._inode(entry) for entry in path.iterdir()}
        else:
            self._contents[inode] = path.read_bytes()

    def _inode(self, path):
        """Returns the inode of a file or directory, which stays unique while it is open."""
        descriptor = os.open(path, os.O_RDONLY)
        self._open.callback(os.close, descriptor)
        return os.fstat(descriptor).st_ino

    def close(self):
        self._open.close()

    def cut_power(self, directory, target):
        """Writes a directory as a power cut would leave it."""
        self._copy(directory.stat().st_ino, target)

    def _copy(self, inode, target):
        if inode in self._entries:
            target.mkdir()
            for name, entry in self._entries[inode].items():
                self._copy(entry, target / name)
        else:
            # A file of zero length, or a directory whose entries were never written.
            target.write_bytes(self._contents.get(inode, b""))


@pytest.fixture
def disk(monkeypatch):
    with contextlib.closing(Disk(monkeypatch)) as made:
        yield made


def test_a_power_cut_leaves_a_whole_checkpoint_at_every_moment(tmp_path, monkeypatch, disk):
    directory, cuts = tmp_path / "checkpoints", []

    def cut(name):
        target = tmp_path / name
        disk.cut_power(directory, target)
        cuts.append((name, target))

    delete = deleter.PathDeleter.delete

    def cut_and_delete(self, path, **options):
        cut(f"before_{path.name}_is_deleted")
        delete(self, path, **options)

    monkeypatch.setattr(deleter.PathDeleter, "delete", cut_and_delete)
    checkpoints = Checkpoints(directory, {})
    for step in (1, 2, 3, 4):
        checkpoints.save(step, make_state(step))
        checkpoints._manager.wait_until_finished()
        cut(f"after_{step}")
    checkpoints.close()
    left = {name: Checkpoints(target, {}).restore_latest(make_state()) for name, target in cuts}
    assert {name: (step, remarks) for name, (step, _, remarks) in left.items()} == {
        "after_1": (1, []),
        "after_2": (2, []),
        "before_1_is_deleted": (3, []),
        "after_3": (3, []),
        "before_2_is_deleted": (4, []),
        "after_4": (4, []),
    }
    assert all((kernel(state) == step).all() for step, state, _ in left.values())


def test_a_power_cut_leaves_the_old_network_or_the_new_one(tmp_path, monkeypatch, disk):
    info = serialization.NetworkInfo(
        "deeplabv3plus_light_r18", 2, 8, False, ("a", "b"), ((0, 0, 0),) * 2
    )
    directory, moments = tmp_path / "net", []
    sync = disk.sync

    def sync_and_cut(descriptor):
        sync(descriptor)
        if directory.stat().st_ino in disk._entries:
            target = tmp_path / f"cut{len(moments)}"
            disk.cut_power(directory, target)
            moments.append(target)

    monkeypatch.setattr(os, "fsync", sync_and_cut)
    network = info.make(dtype="float32")
    abstract = jax.eval_shape(network.init, jax.random.key(0), info.blank_image())
    for value in (1.0, 2.0, 3.0):
        variables = jax.tree.map(lambda leaf: np.full(leaf.shape, value, leaf.dtype), abstract)  # noqa: B023
        serialization.save(directory, info, variables)
    assert serialization.FOLDERS == ("parameters", "second_parameters")
    assert names(directory) == ["network.json", "parameters"]
    found = []
    for target in moments:
        _, variables, _ = serialization.load(target)
        found.append(float(jax.tree.leaves(variables["params"])[0].ravel()[0]))
    assert found == sorted(found)
    assert set(found) == {1.0, 2.0, 3.0}


def test_a_result_or_a_config_survives_a_power_cut(tmp_path, disk):
    Workdir(tmp_path / "run").write_result({"scores": {}})
    disk.cut_power(tmp_path / "run", tmp_path / "left")
    assert json.loads((tmp_path / "left" / "result.json").read_text()) == {"scores": {}}
