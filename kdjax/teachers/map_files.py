"""Compressed maps of many images in files, which are mapped into memory and read by index.

DIR/cache.json    the description of the maps, and a checksum of each other file; written last
DIR/sizes.npy     int32 [N, 2], height and width of every image's map
DIR/NAME.npy      an array of `Compression.layout`: the cells of all maps, one after the other;
                  bfloat16 as uint16, because `numpy.load` does not know bfloat16

While the files are written, the folder has another name. `cache.json.part` and `done.npy` say what
is written and which images are done, so that an interrupted writer continues.
"""

import json
import pathlib
import shutil
import time
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from kdjax.teachers.compression import Compression
from kdjax.utils.errors import UserError

_DESCRIPTION = "cache.json"
_UNFINISHED = "cache.json.part"
_DONE = "done.npy"
_HALF = np.dtype(jnp.bfloat16)
_BLOCK = 1 << 24  # bytes that are read at once for a checksum
_SYNC_SECONDS = 10.0  # work that a power cut may cost


class MapFiles:
    """Open files of the maps of one name.

    Args:
      path: the directory of the files.
      compression: how the maps are stored.

    Raises:
      UserError: if a file is missing, or differs from what was written.
    """

    def __init__(self, path: pathlib.Path, compression: Compression):
        self.compression = compression
        try:
            description = read_description(path) or {}
            for name, checksum in description["checksums"].items():
                if _checksum(path / name) != checksum:
                    raise ValueError(f"{name} has another checksum")
            self._sizes = np.load(path / "sizes.npy")
            self._ends = np.cumsum(self._sizes.prod(1, dtype=np.int64))
            self._arrays = {
                name: np.load(path / f"{name}.npy", mmap_mode="r").view(kind)
                for name, (_, kind) in compression.layout().items()
            }
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"config.teacher.cache {path} is damaged ({error}); remove it, and it is made again"
            ) from error

    @property
    def num_bytes(self) -> int:
        """The size of the maps on disk."""
        return sum(array.nbytes for array in self._arrays.values())

    def rows(self, indices: Iterable[int]) -> dict[str, np.ndarray]:
        """Reads the maps of the images at `indices`, `[B]`.

        Returns:
          `size`, int32 `[B, 2]`; and each array of the layout, `[B, H, W, ...]`, zero beyond the
          map's size. H and W fit the largest map, so that all batches have one shape.
        """
        chosen = list(indices)
        found = {
            name: np.zeros((len(chosen), *self._sizes.max(0), *array.shape[1:]), array.dtype)
            for name, array in self._arrays.items()
        }
        for row, index in enumerate(chosen):
            height, width = self._sizes[index]
            end = self._ends[index]
            for name, array in self._arrays.items():
                cells = array[end - int(height) * int(width) : end]
                found[name][row, :height, :width] = cells.reshape(height, width, *cells.shape[1:])
        return {"size": self._sizes[chosen], **found}


def read_description(path: pathlib.Path) -> dict[str, Any] | None:
    """Returns the description of complete files; None if `path` holds none."""
    try:
        return json.loads((path / _DESCRIPTION).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise UserError(f"{path / _DESCRIPTION} is damaged: {error}") from error


class MapWriter:
    """Writes the maps of one name into a temporary folder, which `finish` renames.

    If a writer of the same description was interrupted, this one continues its work.

    Args:
      path: the directory; missing.
      description: identifies the maps.
      sizes: int32 `[N, 2]`, height and width of every map.
      compression: how the maps are stored.

    Attributes:
      done: True for every image whose map is written, `[N]`.
    """

    def __init__(
        self,
        path: pathlib.Path,
        description: Mapping[str, Any],
        sizes: np.ndarray,
        compression: Compression,
    ):
        self._path, self._description = path, dict(description)
        self._folder = _unfinished(path)
        self._ends = np.cumsum(sizes.prod(1, dtype=np.int64))
        continues = read_unfinished(self._folder) == json.loads(json.dumps(self._description))
        if not continues:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)
        cells = int(self._ends[-1])
        arrays = {
            name: (_stored(kind), (cells, *shape))
            for name, (shape, kind) in compression.layout().items()
        }
        arrays[pathlib.Path(_DONE).stem] = (np.dtype(bool), (len(sizes),))
        self._files = {
            name: np.lib.format.open_memmap(self._folder / f"{name}.npy", "r+")
            if continues
            else np.lib.format.open_memmap(self._folder / f"{name}.npy", "w+", *value)
            for name, value in arrays.items()
        }
        self.done = self._files.pop(pathlib.Path(_DONE).stem)
        if not continues:
            np.save(self._folder / "sizes.npy", sizes)
            (self._folder / _UNFINISHED).write_text(json.dumps(self._description))
        self._synced = time.monotonic()

    def write(self, index: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes the compressed map of an image, `[H, W, ...]`."""
        for name, file in self._files.items():
            cells = arrays[name].reshape(-1, *file.shape[1:])
            file[self._ends[index] - len(cells) : self._ends[index]] = cells.view(file.dtype)
        self.done[index] = True
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            self._sync()

    def finish(self, *, seconds: float) -> None:
        """Writes the description, and gives the folder its name.

        Args:
          seconds: the time that the maps took, for reports.
        """
        self._sync()
        paths = [path for path in sorted(self._folder.glob("*.npy")) if path.name != _DONE]
        sums = {path.name: _checksum(path) for path in paths}
        made = {"seconds": seconds, "checksums": sums}
        text = json.dumps(self._description | made, indent=2) + "\n"
        (self._folder / _DESCRIPTION).write_text(text)
        self._folder.rename(self._path)
        # Only now, so that a writer that was killed anywhere above continues.
        for name in (_UNFINISHED, _DONE):
            (self._path / name).unlink()

    def _sync(self) -> None:
        # The maps first: an image counts as done only when its map is on the disk.
        for file in self._files.values():
            file.flush()
        self.done.flush()
        self._synced = time.monotonic()


def _unfinished(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f".{path.name}.unfinished")


def unfinished_bytes(path: pathlib.Path) -> int:
    """Returns how much of the disk the unfinished files of a directory take."""
    return sum(file.stat().st_blocks * 512 for file in _unfinished(path).glob("*.npy"))


def read_unfinished(folder: pathlib.Path) -> dict[str, Any] | None:
    """Returns the description of unfinished files; None if there are none."""
    try:
        return json.loads((folder / _UNFINISHED).read_text())
    except (OSError, ValueError):
        return None


def _checksum(path: pathlib.Path) -> int:
    """Returns the CRC-32 of a file."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            value = zlib.crc32(block, value)
    return value


def _stored(kind: np.dtype) -> np.dtype:
    return np.dtype(np.uint16) if kind == _HALF else kind
