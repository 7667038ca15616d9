"""A lock that lets one process at a time write into a directory."""

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

# A file server keeps the lock of a machine that was lost for about as long.
LEASE_SECONDS = 120.0
# Without `flock`: the owner rewrites the lock file this often, ...
REFRESH_SECONDS = 10.0
# ... a lock file that does not change for this long has expired, ...
EXPIRY_SECONDS = 60.0
# ... and a new owner waits this long to see if another process took the lock at the same time.
SETTLE_SECONDS = 15.0
_NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class Lock:
    """Keeps other processes out of a directory, on this machine and on all that share the disk.

    The lock is a file that names its owner, locked by `flock`. The operating system or the file
    server releases it when the owner dies. NFS mounted with `nolock` locks only within one machine.

    In an object store, and on a disk without `flock`, the lock is the file alone. Its owner
    rewrites it every few seconds. A lock file that has not changed for a minute has expired. An
    owner that finds another owner in the file ends its process.

    Args:
      path: the lock file, which exists while the lock is held.
      subject: the name of the locked directory in messages.
      advice: the end of the error message: what the user can do.
    """

    def __init__(self, path: epath.PathLike, subject: str, advice: str):
        self._path = epath.Path(path)
        self._subject, self._advice = subject, advice
        self._flocks = not is_remote(self._path)
        self._made: list[epath.Path] = []
        self._file: int | None = None
        self._refresher: threading.Thread | None = None
        self._released = threading.Event()
        self._seen: dict[str, Any] | None = None
        self._seen_at = 0.0

    def acquire(self, patience: float = 0.0) -> None:
        """Takes the lock.

        Args:
          patience: seconds to wait for the owner. An owner that may have died unnoticed, because it
            is on another machine or there is no `flock`, gets at least two minutes.

        Raises:
          UserError: if another process keeps the lock. The message names the process.
          OSError: if the file cannot be written.
        """
        if self._flocks:
            self._made = [path for path in self._path.parents if not path.exists()]
        started, told = time.monotonic(), False
        while (owner := self._try()) is not None:
            here = self._flocks and owner.get("host") in (None, socket.gethostname())
            if time.monotonic() - started >= max(patience, 0 if here else LEASE_SECONDS):
                raise UserError(f"{self._subject} is in use: {_describe(owner)}; {self._advice}")
            if not told:
                logger.info(
                    f"{self._subject} is in use: {_describe(owner)}; this process waits for its end"
                )
                told = True
            time.sleep(0.5)

    def release(self) -> None:
        """Releases the lock, and removes its file and the directories made for it if empty."""
        self._released.set()
        if self._refresher:
            self._refresher.join()
        if self._refresher or self._file is not None:
            # The user may have removed the directory. Clients of stores have their own errors.
            with contextlib.suppress(Exception):
                self._path.unlink(missing_ok=True)
        if self._file is not None:
            os.close(self._file)
        self._file = self._refresher = None
        # os.rmdir, because epath's rmdir may remove a directory that has just been written to.
        with contextlib.suppress(OSError):
            for directory in self._made:
                os.rmdir(directory)

    def _try(self) -> dict[str, Any] | None:
        """Takes the lock, or returns the record of its owner."""
        if not self._flocks:
            return self._try_without_flock()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The last owner may just have removed the file, and another process made a new one.
            if not _is_at(file, self._path):
                os.close(file)
                return self._try()
            os.ftruncate(file, 0)
            os.write(file, json.dumps(_new_record()).encode())
        except OSError as error:
            os.close(file)
            if error.errno in _NO_FLOCK:
                self._flocks = False
                return self._try_without_flock()
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return _read(self._path) or {}
            raise
        self._file = file
        return None

    def _try_without_flock(self) -> dict[str, Any] | None:
        """Takes the lock if its file does not exist or has expired. The last writer wins."""
        found = _read(self._path)
        if found != self._seen:
            self._seen, self._seen_at = found, time.monotonic()
        if found and time.monotonic() - self._seen_at < EXPIRY_SECONDS:
            return found
        record = _new_record()
        write_atomically(self._path, json.dumps(record))
        time.sleep(SETTLE_SECONDS)
        found = _read(self._path)
        if found is None or found["key"] != record["key"]:
            return found or {}
        self._released.clear()
        self._refresher = threading.Thread(target=self._refresh, args=(record,), daemon=True)
        self._refresher.start()
        return None

    def _refresh(self, record: dict[str, Any]) -> None:
        """Rewrites the lock file until the lock is released."""
        count = 0
        while not self._released.wait(REFRESH_SECONDS):
            found = _read(self._path)
            if found and found["key"] != record["key"]:
                processes.end_at_once(f"{self._subject} was taken over: {_describe(found)}")
            count += 1
            # A store may fail once.
            with contextlib.suppress(OSError):
                write_atomically(self._path, json.dumps({**record, "refreshed": count}))


def _new_record() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": os.path.basename(sys.argv[0]),
        "key": uuid.uuid4().hex,
    }


def _describe(owner: dict[str, Any]) -> str:
    if not owner:
        return "another process writes there"
    return (
        f"process {owner.get('pid')} of {owner.get('host')} ({owner.get('command')}) writes there "
        f"since {owner.get('since')}"
    )


def _read(path: epath.Path) -> dict[str, Any] | None:
    """Returns the owner's record, or None if there is none or it is only half written."""
    # Clients of stores have their own errors for a missing object.
    with contextlib.suppress(Exception):
        found = json.loads(path.read_text())
        if isinstance(found, dict) and "key" in found:
            return found
    return None


def _is_at(file: int, path: epath.Path) -> bool:
    """Returns True if an open file is the one at the path."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False
