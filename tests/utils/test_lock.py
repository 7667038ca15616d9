"""A lock has one owner at a time, a dead owner loses it, and an error names the owner."""

import contextlib
import errno
import fcntl
import json
import queue
import re
import socket
import subprocess
import sys
import threading
import time

import pytest

from kdjax.experiment.workdir import Workdir
from kdjax.utils import lock as locks
from kdjax.utils.errors import UserError
from kdjax.utils.lock import Lock


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / ".lock"


@pytest.fixture
def lock(path):
    """Makes locks of the path, and releases all of them at the end."""
    with contextlib.ExitStack() as stack:

        def make():
            made = Lock(path, "the run", "go elsewhere")
            stack.callback(made.release)
            return made

        yield make


IN_USE = (
    r"^the run is in use: process {pid} of \S+ \(\S+\) writes there since "
    r"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d; go elsewhere$"
)


@contextlib.contextmanager
def held_by_a_process(path):
    """Starts a process that has the lock, yields its id, and kills it at the end."""
    code = (
        "import sys, time; from kdjax.utils.lock import Lock; "
        "Lock(sys.argv[1], 'the run', '').acquire(); print('has it', flush=True); time.sleep(100)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout.readline() == "has it\n"
            yield child.pid
        finally:
            child.kill()


def test_one_process_has_it_at_a_time_and_a_dead_one_never(path, lock):
    with (
        held_by_a_process(path) as process,
        pytest.raises(UserError, match=IN_USE.format(pid=process)),
    ):
        lock().acquire()
    # The dead process has left its record.
    assert json.loads(path.read_text())["pid"] == process
    lock().acquire()


def test_nothing_is_left_of_it(path, lock, tmp_path):
    held = lock()
    held.acquire()
    with pytest.raises(UserError, match="is in use"):
        lock().acquire()
    held.release()
    assert not list(tmp_path.iterdir())
    # Directories that existed before stay.
    tmp_path.joinpath("run").mkdir()
    held.acquire()
    held.release()
    assert not list(path.parent.iterdir())


def test_a_lock_that_was_given_back_meanwhile_is_not_one(path, lock, monkeypatch):
    """The owner removes the file after another process opened it and before that locks it."""
    held, real, missed = lock(), fcntl.flock, []
    held.acquire()

    def flock(file, operation):
        if not missed:
            missed.append(file)
            held.release()
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    lock().acquire()
    with pytest.raises(UserError, match="is in use"):
        lock().acquire()


def test_one_that_is_about_to_end_is_waited_for(path, lock, capsys):
    held = lock()
    held.acquire()
    threading.Timer(1.0, held.release).start()
    lock().acquire(patience=20)
    assert re.fullmatch(
        r"the run is in use: process .*; this process waits for its end\n", capsys.readouterr().out
    )


def test_one_of_another_machine_is_waited_for_as_long_as_its_server_takes_it_for_alive(
    path, lock, monkeypatch
):
    held = lock()
    held.acquire()
    path.write_text(json.dumps({**json.loads(path.read_text()), "host": "another"}))
    monkeypatch.setattr(locks, "LEASE_SECONDS", 1.0)
    started = time.monotonic()
    with pytest.raises(UserError, match="of another"):
        lock().acquire()
    assert time.monotonic() - started >= 1


@pytest.fixture
def no_flock(monkeypatch):
    """A disk without `flock`, and short times."""

    def flock(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    times = {"REFRESH": 0.1, "SETTLE": 0.5, "EXPIRY": 1.5, "LEASE": 2.5}
    for name, seconds in times.items():
        monkeypatch.setattr(locks, f"{name}_SECONDS", seconds)


@pytest.mark.usefixtures("no_flock")
def test_without_flock_a_living_owner_keeps_the_lock(path, lock):
    held = lock()
    held.acquire()
    with pytest.raises(UserError, match="is in use: process"):
        lock().acquire()
    held.release()
    assert not path.parent.exists()
    lock().acquire()


@pytest.mark.usefixtures("no_flock")
def test_without_flock_the_lock_of_a_dead_owner_expires(path, lock):
    path.parent.mkdir()
    path.write_text(
        json.dumps({"host": socket.gethostname(), "pid": 1, "key": "a", "refreshed": 9})
    )
    started = time.monotonic()
    lock().acquire()
    assert time.monotonic() - started >= 1.5


@pytest.mark.usefixtures("no_flock")
def test_without_flock_one_of_two_newcomers_wins(path, lock):
    results = []

    def come():
        try:
            lock().acquire()
            results.append("has it")
        except UserError:
            results.append("refused")

    threads = [threading.Thread(target=come) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["has it", "refused"]


@pytest.mark.usefixtures("no_flock")
def test_without_flock_an_owner_that_slept_too_long_ends(path, lock, monkeypatch):
    """While its machine was suspended, another process took the expired lock."""
    said = queue.SimpleQueue()
    monkeypatch.setattr(locks.processes, "end_at_once", said.put)
    held = lock()
    held.acquire()
    while "refreshed" not in path.read_text():
        time.sleep(0.01)
    # A refresh that is under way may overwrite the other owner's record.
    message = ""
    for _ in range(40):
        path.write_text(json.dumps({"host": "other", "pid": 7, "key": "b", "refreshed": 3}))
        with contextlib.suppress(queue.Empty):
            message = said.get(timeout=0.5)
            break
    assert message.startswith("the run was taken over: process 7 of other")
    held.release()


@pytest.mark.usefixtures("no_flock")
def test_a_bucket_has_no_flock(path, lock, monkeypatch):
    monkeypatch.setattr(locks, "is_remote", lambda path: True)
    path.parent.mkdir()
    held = lock()
    held.acquire()
    with pytest.raises(UserError, match="is in use: process"):
        lock().acquire()
    held.release()


def test_a_workdir_says_who_is_at_work_there(tmp_path):
    files = Workdir(tmp_path / "run")
    message = rf"^--workdir {files.path} is in use: process .*; wait for its end, stop it, or "
    with files.hold(), pytest.raises(UserError, match=message), Workdir(files.path).hold():
        pass
    assert not files.path.exists()
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"cannot write to --workdir .*: Not a directory"),
        Workdir(tmp_path / "file" / "run").hold(),
    ):
        pass
