"""Original files of a data set: a folder, the archives in it, or one archive, seen as one tree."""

import abc
import dataclasses
import errno
import functools
import gzip
import hashlib
import os
import pathlib
import posixpath
import shutil
import tarfile
import tempfile
import weakref
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO

from kdjax.utils.errors import UserError

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")


@dataclasses.dataclass(frozen=True, slots=True)
class File:
    """A file in a folder or an archive; as a string, where it lies.

    `state` gives words that change when the file does, without reading it.
    """

    where: str
    read: Callable[[], bytes] = dataclasses.field(repr=False, compare=False)
    state: Callable[[], str] = dataclasses.field(repr=False, compare=False)

    @classmethod
    def on_disk(cls, path: pathlib.Path) -> "File":
        """The file at `path`."""
        return cls(str(path), path.read_bytes, functools.partial(_state_on_disk, path))

    def __str__(self) -> str:
        return self.where


def state_of_source(source: pathlib.Path, *, beside: pathlib.Path) -> str:
    """Changes with the names, sizes and times of the files of a folder or archive; reads none.

    Hidden files do not count, nor do those in the folder `beside`, which may lie in it.
    """
    digest = hashlib.sha256()
    paths = sorted(_walk(source, beside)) if source.is_dir() else [""]
    for path in paths:
        try:
            state = _state_on_disk(source / path)
        except OSError:  # a link that leads nowhere
            state = ""
        digest.update(f"{path} {state}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _state_on_disk(path: pathlib.Path) -> str:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


@dataclasses.dataclass(frozen=True)
class Listing:
    """Files of one kind under one folder.

    Attributes:
      where: that folder, for messages.
      suffix: how the names of the files end.
      files: by path from the folder, without the suffix; sorted.
    """

    where: str
    suffix: str
    files: Mapping[str, File]


class Tree:
    """Finds files by the end of their folder's path, in a folder or in archives.

    Files that lie unpacked count before those in archives, and an archive is looked into only when
    something was not found before. An archive counts as a folder of its own name (without suffix),
    since some hold their files in no other. Hidden files are passed over.
    """

    def __init__(self, source: pathlib.Path, expected: str):
        """Looks at `source`, of which `expected` says in a few words what it should be.

        Raises:
          UserError: `source` is neither a folder nor an archive.
        """
        self._source = source
        self._expected = expected
        if source.is_dir():
            archives = sorted(path for path in source.iterdir() if _is_archive(path))
            self._places = [source, *archives]
        elif _is_archive(source):
            self._places = [source]
        else:
            raise UserError(f"there is no folder or archive {source}; --source names {expected}")
        self._opened: dict[pathlib.Path, _Place] = {}

    def find(self, *folders: str, suffix: str) -> Listing | None:
        """The files ending in `suffix` anywhere under the folder whose path ends in `folders[0]`.

        Where there are none, the other `folders` are tried in turn.

        Raises:
          UserError: there are several such folders, the name of a file is not UTF-8, or an
            archive is damaged.
        """
        for folder in folders:
            for place in map(self._open, self._places):
                roots = _by_root(place.paths, folder, suffix)
                if len(roots) > 1:
                    several = " and ".join(place.where(root) for root in sorted(roots))
                    raise UserError(
                        f"there are several folders with *{suffix}: {several}; "
                        f"--source names {self._expected}"
                    )
                for root, names in roots.items():
                    for path in names.values():
                        check_name(place.where(path))
                    files = {name: place.file(names[name]) for name in sorted(names)}
                    return Listing(place.where(root), suffix, files)
        return None

    def files(self, *folders: str, suffix: str) -> Listing:
        """As `find`, for files that have to be there.

        Raises:
          UserError: there are no such files, or as for `find`.
        """
        if listing := self.find(*folders, suffix=suffix):
            return listing
        raise UserError(
            f"{self._source} holds no folder {folders[0]} with files *{suffix}; "
            f"--source names {self._expected}"
        )

    def _open(self, path: pathlib.Path) -> "_Place":
        if path not in self._opened:
            self._opened[path] = _Folder(path) if path.is_dir() else _open_archive(path)
        return self._opened[path]


def check_name(path: str) -> None:
    """Refuses the path of a file that records could not name.

    Raises:
      UserError: it is not UTF-8.
    """
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the name of {path!a} is not UTF-8; rename it") from error


def _by_root(paths: Sequence[str], folder: str, suffix: str) -> dict[str, dict[str, str]]:
    """Paths by the folder ending in `folder`, the innermost of such, and there by name."""
    roots: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for path in paths:
        if path.endswith(suffix):
            above, found, name = f"/{path}".rpartition(f"/{folder}/")
            if found:
                roots[f"{above}/{folder}".lstrip("/")][name.removesuffix(suffix)] = path
    return roots


def _is_archive(path: pathlib.Path) -> bool:
    return path.name.endswith(ARCHIVE_SUFFIXES) and path.is_file()


class _Place(abc.ABC):
    """Where files lie: their `paths`, with slashes, and what is in them."""

    paths: list[str]

    @abc.abstractmethod
    def where(self, path: str) -> str: ...

    @abc.abstractmethod
    def read(self, path: str) -> bytes: ...

    @abc.abstractmethod
    def state(self, path: str) -> str: ...

    def file(self, path: str) -> File:
        read, state = functools.partial(self.read, path), functools.partial(self.state, path)
        return File(self.where(path), read, state)


class _Folder(_Place):
    def __init__(self, root: pathlib.Path):
        self._root = root
        self.paths = list(_walk(root))

    def where(self, path: str) -> str:
        return str(self._root / path)

    def read(self, path: str) -> bytes:
        return (self._root / path).read_bytes()

    def state(self, path: str) -> str:
        return _state_on_disk(self._root / path)


def _walk(root: pathlib.Path, *passed_over: pathlib.Path) -> Iterator[str]:
    """Paths of all files, through links, each folder once."""
    seen = set(map(os.path.realpath, passed_over))
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        below = pathlib.Path(folder).relative_to(root).as_posix()
        for name in names:
            if not name.startswith("."):
                yield name if below == "." else f"{below}/{name}"


class _Archive(_Place):
    """What zip and tar have in common: members by path, under the archive's own name."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        suffix = next(suffix for suffix in ARCHIVE_SUFFIXES if path.name.endswith(suffix))
        self._stem = path.name.removesuffix(suffix)
        self.paths: list[str] = []

    def _add(self, member: str) -> str | None:
        """Path of a member; None if it is hidden, as are the files that macOS adds."""
        path = f"{self._stem}/{posixpath.normpath(member)}"
        if any(part.startswith(".") for part in path.split("/")):
            return None
        self.paths.append(path)
        return path

    def where(self, path: str) -> str:
        return f"{self._path}: {path.removeprefix(f'{self._stem}/')}"


class _Zip(_Archive):
    def __init__(self, path: pathlib.Path):
        super().__init__(path)
        self._zip = zipfile.ZipFile(path)
        self._members = {
            added: member
            for member in self._zip.infolist()
            if not member.is_dir() and (added := self._add(member.filename))
        }

    def read(self, path: str) -> bytes:
        return self._zip.read(self._members[path])

    def state(self, path: str) -> str:
        return f"{self._members[path].file_size} {self._members[path].CRC}"


class _Tar(_Archive):
    def __init__(self, path: pathlib.Path):
        super().__init__(path)
        self._file = path.open("rb") if path.suffix == ".tar" else _decompressed(path)
        weakref.finalize(self, self._file.close)
        with tarfile.open(fileobj=self._file, mode="r:") as tar:
            members = {posixpath.normpath(member.name): member for member in tar}
        self._members: dict[str, tuple[int, int]] = {}
        for name, member in members.items():
            if (member.isreg() or _is_link(member)) and (added := self._add(name)):
                target = self._target(name, members)
                self._members[added] = target.offset_data, target.size

    def _target(self, name: str, members: Mapping[str, tarfile.TarInfo]) -> tarfile.TarInfo:
        """Returns the file that a member is, or leads to as a link.

        Raises:
          UserError: a link leads to no file of the archive.
        """
        member = members[name]
        for _ in members:  # links may lead to links, even in a circle
            if not _is_link(member):
                break
            # A hard link has the path in the archive, a symbolic link the path from its folder.
            folder = "" if member.islnk() else posixpath.dirname(member.name)
            target = posixpath.normpath(posixpath.join(folder, member.linkname))
            member = members.get(target, member)
        if not member.isreg():
            raise UserError(
                f"archive {self._path}: {name} is a link to {members[name].linkname}, which is no "
                "file in the archive; unpack it, and name the folder by --source"
            )
        return member

    def read(self, path: str) -> bytes:
        offset, size = self._members[path]
        # Unlike seek and read, safe in several threads.
        return os.pread(self._file.fileno(), size, offset)

    def state(self, path: str) -> str:
        return f"{self._members[path]} {_state_on_disk(self._path)}"


def _is_link(member: tarfile.TarInfo) -> bool:
    return member.issym() or member.islnk()


def _open_archive(path: pathlib.Path) -> _Archive:
    try:
        return _Zip(path) if path.suffix == ".zip" else _Tar(path)
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(
            f"archive {path} is damaged or incomplete ({error}); get it again"
        ) from error


def _decompressed(path: pathlib.Path) -> IO[bytes]:
    """The tar file inside `path`, as a file without a name: gzip alone gives no random access."""
    unpacked = tempfile.TemporaryFile(prefix="kdjax-")  # noqa: SIM115  closed by its archive
    try:
        with gzip.open(path) as packed:
            shutil.copyfileobj(packed, unpacked, 1 << 20)
        unpacked.flush()
        unpacked.seek(0)
    except BaseException as error:
        unpacked.close()
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise UserError(
                f"no space left in {tempfile.gettempdir()} to decompress {path}; unpack it "
                "yourself, or name a folder with more space by TMPDIR"
            ) from error
        raise
    return unpacked
