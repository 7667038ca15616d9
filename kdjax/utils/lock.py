"""Who may write into a directory: one process at a time, which the others can name."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid
from typing import Any

from etils import epath

from kdjax.utils import processes
from kdjax.utils.errors import UserError
from kdjax.utils.files import is_remote, write_atomically
from kdjax.utils.log import logger

# A server of files keeps the lock of a machine that went away for about as long.
LEASE_SECONDS = 120.0
# Where nothing can be locked: between two signs of life of the process that holds it, ...
BEAT_SECONDS = 10.0
# ... what a newcomer waits for a sign of life of another one, ...
SETTLE_SECONDS = 15.0
# ... and after so long without any, the process that wrote the last one is dead.
SILENCE_SECONDS = 60.0
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class Lock:
    """Keeps other processes out, on this machine and on all that share the disk.

    The operating system, or the server of the disk, gives the lock back when its process dies. In
    an object store, and on a disk that knows no locks, the process shows every few seconds that it
    is alive; one that was killed is then waited for for a minute. A disk whose locks end at the
    machine, as NFS mounted with `nolock`, keeps only the processes of one machine apart.

    Args:
      path: of the file that is locked, and says by whom; it is there as long as the lock is held.
      subject: what is locked, as an error names it.
      otherwise: what else the user may do, as an error says it.
    """

    def __init__(self, path: epath.PathLike, subject: str, otherwise: str):
        self._path = epath.Path(path)
        self._subject, self._otherwise = subject, otherwise
        self._made: list[epath.Path] = []
        self._file: int | None = None
        self._heart: _Heart | None = None

    def acquire(self, patience: float = 0.0) -> None:
        """Takes the lock.

        Args:
          patience: seconds to wait for the process that has it, from which a process of another
            machine always gets some: that may have died with its machine.

        Raises:
          UserError: naming the process that has it.
          OSError: when the file cannot be written.
        """
        if not is_remote(self._path):
            self._made = [path for path in self._path.parents if not path.exists()]
        started, told = time.monotonic(), False
        while (owner := self._try()) is not None:
            here = owner.get("host") in (None, socket.gethostname())
            if time.monotonic() - started >= max(patience, 0 if here else LEASE_SECONDS):
                raise UserError(f"{self._subject} is in use: {_name(owner)}; {self._otherwise}")
            if not told:
                logger.info(f"{self._subject} is in use: {_name(owner)}; waits for its end")
                told = True
            time.sleep(0.5)

    def release(self) -> None:
        """Gives the lock back, and removes its file and what folders it was alone in."""
        if self._heart:
            self._heart.stop()
        if self._file is not None or self._heart:
            # Somebody may have removed the whole directory; and clients of stores have errors of
            # their own.
            with contextlib.suppress(Exception):
                self._path.unlink(missing_ok=True)
        if self._file is not None:
            os.close(self._file)
        self._file = self._heart = None
        for directory in self._made:
            try:
                # Not epath's, which looks whether it is empty, and then removes whatever is in it.
                os.rmdir(directory)
            except OSError:
                return

    def _try(self) -> dict[str, Any] | None:
        """Takes the lock, or returns what its owner says of itself."""
        if is_remote(self._path):
            return self._try_without_locks()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The last owner may have removed it just now, and another made it anew.
            if not _is_at(file, self._path):
                os.close(file)
                return self._try()
            os.ftruncate(file, 0)
            os.write(file, json.dumps(_myself()).encode())
        except OSError as error:
            os.close(file)
            if error.errno in _NO_LOCKS:
                return self._try_without_locks()
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return _read(self._path) or {}
            raise
        self._file = file
        return None

    def _try_without_locks(self) -> dict[str, Any] | None:
        """Writes oneself down; who is still written there in the end has it.

        An owner writes itself down again before a newcomer has settled, and so wins. Of two
        newcomers the one wins that wrote last.
        """
        if owner := self._living():
            return owner
        record = _myself()
        write_atomically(self._path, json.dumps(record))
        time.sleep(SETTLE_SECONDS)
        found = _read(self._path)
        for _ in range(3):
            # Just being written, or a store that fails for once.
            if found is None:
                time.sleep(1)
                found = _read(self._path)
        if found is None or found.get("key") != record["key"]:
            return found or {}
        self._heart = _Heart(self._path, record, f"{self._subject} was taken over")
        return None

    def _living(self) -> dict[str, Any] | None:
        """What is written there, if whoever wrote it is alive."""
        first = found = _read(self._path)
        started = time.monotonic()
        while found and found == first:
            if time.monotonic() - started > SILENCE_SECONDS:
                return None
            time.sleep(min(1.0, BEAT_SECONDS))
            found = _read(self._path)
        return found


class _Heart:
    """Shows that its process is alive, as long as it is.

    Args:
      path: where.
      record: what this process says of itself.
      lost: what is said when another process took this one for dead, which then ends.
    """

    def __init__(self, path: epath.Path, record: dict[str, Any], lost: str):
        self._path, self._record, self._lost = path, record, lost
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _beat(self) -> None:
        beats = 0
        while not self._stopped.is_set():
            # A store may fail for once.
            with contextlib.suppress(OSError):
                found = _read(self._path) or {}
                # A newcomer has not beaten yet, and gives way.
                if found.get("key") != self._record["key"] and found.get("beats"):
                    processes.end_at_once(f"{self._lost}: {_name(found)}")
                beats += 1
                write_atomically(self._path, json.dumps({**self._record, "beats": beats}))
            self._stopped.wait(BEAT_SECONDS)


def _myself() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": os.path.basename(sys.argv[0]),
        "key": uuid.uuid4().hex,
    }


def _name(owner: dict[str, Any]) -> str:
    """Who it is, in words."""
    if not owner:
        return "another process writes there"
    return (
        f"process {owner.get('pid')} of {owner.get('host')} ({owner.get('command')}) writes there "
        f"since {owner.get('since')}"
    )


def _read(path: epath.Path) -> dict[str, Any] | None:
    """What an owner wrote; None where there is none."""
    try:
        found = json.loads(path.read_text())
    # Every client of a store has an error of its own for what is not there; and the owner may be
    # about to write.
    except Exception:
        return None
    return found if isinstance(found, dict) else None


def _is_at(file: int, path: epath.Path) -> bool:
    """Whether an open file is still the one that the path names."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False
