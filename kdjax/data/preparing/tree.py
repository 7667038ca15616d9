"""The original files of a data set: a folder, a folder that holds archives, or one archive."""

import dataclasses
import functools
import hashlib
import os
import pathlib
import shutil
import tarfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kdjax.utils.errors import UserError

_ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
# A link to a missing file raises a KeyError.
_DAMAGED = (zipfile.BadZipFile, shutil.ReadError, tarfile.TarError, EOFError, zlib.error, KeyError)


@dataclasses.dataclass(frozen=True)
class Listing:
    """Files of one kind under one folder.

    Attributes:
      folder: the folder.
      suffix: the end of the files' names.
      files: the files by their path below the folder, without the suffix; sorted.
    """

    folder: pathlib.Path
    suffix: str
    files: Mapping[str, pathlib.Path]


class Tree:
    """Finds files by the end of their folder's path.

    Unpacked files take precedence over files in archives. An archive is unpacked only if the files
    are not found before it. Its content counts as lying in a folder with the archive's name, since
    some archives have no folder inside. Hidden files are ignored.
    """

    def __init__(self, source: pathlib.Path, expected: str, scratch: pathlib.Path):
        """Lists the archives in `source`.

        Args:
          source: a folder or an archive.
          expected: a few words on what `source` should be, for messages.
          scratch: the folder to unpack archives in.
        """
        self._source, self._expected, self._scratch = source, expected, scratch
        if source.is_dir():
            self._places = [source, *sorted(path for path in source.iterdir() if _is_archive(path))]
        elif _is_archive(source):
            self._places = [source]
        else:
            raise UserError(f"there is no folder or archive {source}; --source names {expected}")

    def find(self, *folders: str, suffix: str) -> Listing | None:
        """Returns the files ending in `suffix` under the folder whose path ends in `folders[0]`.

        Tries the other `folders` in turn if there are none. Returns None if all fail.
        """
        for folder in folders:
            for place in self._places:
                root, paths = self._paths(place)
                found = _by_folder(paths, folder, suffix)
                if len(found) > 1:
                    several = " and ".join(str(root / path) for path in sorted(found))
                    raise UserError(
                        f"there are several folders with *{suffix}: {several}; "
                        f"--source names {self._expected}"
                    )
                for path, names in found.items():
                    files = {name: root / names[name] for name in sorted(names)}
                    for file in files.values():
                        check_name(str(file))
                    return Listing(root / path, suffix, files)
        return None

    def files(self, *folders: str, suffix: str) -> Listing:
        """Returns what `find` returns."""
        if listing := self.find(*folders, suffix=suffix):
            return listing
        raise UserError(
            f"{self._source} holds no folder {folders[0]} with files *{suffix}; "
            f"--source names {self._expected}"
        )

    @functools.cache  # noqa: B019  a tree lives as long as its builder
    def _paths(self, place: pathlib.Path) -> tuple[pathlib.Path, list[str]]:
        """Returns a folder and the paths of the files below it, unpacking an archive first."""
        root = place if place.is_dir() else _unpack(place, self._scratch / place.name)
        return root, list(_walk(root))


def state_of_source(source: pathlib.Path, *, excluded: pathlib.Path) -> str:
    """Returns a hash of the names, sizes and times of the files in `source`, without reading them.

    Args:
      source: a folder or an archive. Its hidden files do not count.
      excluded: a folder, possibly below `source`, whose files do not count.
    """
    digest = hashlib.sha256()
    paths = sorted(_walk(source, excluded)) if source.is_dir() else [""]
    for path in paths:
        try:
            status = (source / path).stat()
            state = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:  # a dangling link
            state = ""
        digest.update(f"{path} {state}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def check_name(path: str) -> None:
    """Checks that a file name is UTF-8, so that records can hold it."""
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the name of {path!a} is not UTF-8; rename it") from error


def _by_folder(paths: Sequence[str], folder: str, suffix: str) -> dict[str, dict[str, str]]:
    """Groups paths by the innermost parent that ends in `folder`, then by name without suffix."""
    found: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for path in paths:
        above, matched, name = f"/{path}".rpartition(f"/{folder}/")
        if matched and path.endswith(suffix):
            found[f"{above}/{folder}".lstrip("/")][name.removesuffix(suffix)] = path
    return found


def _walk(root: pathlib.Path, *excluded: pathlib.Path) -> Iterator[str]:
    """Yields the relative paths of all files. Follows links, but visits each folder once."""
    seen = set(map(os.path.realpath, excluded))
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        below = pathlib.Path(folder).relative_to(root)
        yield from ((below / name).as_posix() for name in names if not name.startswith("."))


def _is_archive(path: pathlib.Path) -> bool:
    return path.name.endswith(_ARCHIVE_SUFFIXES) and path.is_file()


def _unpack(archive: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Unpacks an archive into a folder of its name in `folder`, and returns `folder`."""
    suffix = next(suffix for suffix in _ARCHIVE_SUFFIXES if archive.name.endswith(suffix))
    # A tar must not write outside of the folder. shutil makes sure of that for zip alone.
    options: dict[str, Any] = {} if suffix == ".zip" else {"filter": "data"}
    try:
        shutil.unpack_archive(archive, folder / archive.name.removesuffix(suffix), **options)
    except tarfile.FilterError as error:
        raise UserError(
            f"archive {archive}: {error}; unpack it, and name the folder by --source"
        ) from error
    except _DAMAGED as error:
        raise UserError(
            f"archive {archive} is damaged or incomplete ({error}); get it again"
        ) from error
    return folder
