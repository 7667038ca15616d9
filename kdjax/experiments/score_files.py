"""Class scores of whole images on disk: flat files that are mapped into memory and read by index.

DIR/cache.json    what the scores are of; written last
DIR/sizes.npy     int32 [N, 2], height and width of every image's map
DIR/NAME.npy      an array of `kdjax.training.compact_scores.layout`: the cells of all maps, one
                  after the other; bfloat16 as uint16, which `numpy.load` knows
"""

import json
import pathlib
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from kdjax.errors import UserError
from kdjax.training.compact_scores import layout

_DESCRIPTION = "cache.json"
_HALF = np.dtype(jnp.bfloat16)


class ScoreFiles:
    """Open files of scores.

    Args:
      path: their directory.
      num_classes: K.
      keep: how many of the highest scores were kept; 0 for all.

    Raises:
      UserError: a file is missing, or is not what the others say.
    """

    def __init__(self, path: pathlib.Path, num_classes: int, keep: int):
        self.num_classes = num_classes
        try:
            self._sizes = np.load(path / "sizes.npy")
            self._ends = np.cumsum(self._sizes.prod(1, dtype=np.int64))
            self._arrays = {}
            for name, (shape, kind) in layout(num_classes, keep).items():
                array = np.load(path / f"{name}.npy", mmap_mode="r")
                if array.shape != (self._ends[-1], *shape) or array.dtype != _stored(kind):
                    raise ValueError(f"{name}.npy holds {array.dtype} {array.shape}")
                self._arrays[name] = array.view(kind)
        except (OSError, ValueError, IndexError) as error:
            raise UserError(
                f"config.teacher.cache {path} is damaged ({error}); remove it, and it is made again"
            ) from error

    @property
    def num_bytes(self) -> int:
        """What the scores take on disk."""
        return sum(array.nbytes for array in self._arrays.values())

    def rows(self, indices: Iterable[int]) -> dict[str, np.ndarray]:
        """Reads the maps of the images at `indices`, `[B]`.

        Returns:
          `size`, int32 `[B, 2]`; and each array of the layout, `[B, H, W, ...]`, zero beyond an
          image's size. H and W are those of the largest map, so that all batches have one shape.
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


def describe(path: pathlib.Path) -> dict[str, Any] | None:
    """What the scores in `path` are of, as `write` was told; None where there are none."""
    try:
        return json.loads((path / _DESCRIPTION).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise UserError(f"{path / _DESCRIPTION} is damaged: {error}") from error


def num_bytes(sizes: np.ndarray, num_classes: int, keep: int) -> int:
    """What the scores of maps of these sizes, `[N, 2]`, take on disk."""
    of_a_cell = sum(
        int(np.prod(shape)) * kind.itemsize for shape, kind in layout(num_classes, keep).values()
    )
    return int(sizes.prod(1, dtype=np.int64).sum()) * of_a_cell


def write(
    path: pathlib.Path,
    description: Mapping[str, Any],
    sizes: np.ndarray,
    maps: Iterable[tuple[int, Mapping[str, np.ndarray]]],
    *,
    num_classes: int,
    keep: int,
) -> None:
    """Writes scores to a folder beside `path`, which gets that name when it is complete.

    Args:
      path: the directory; missing or empty.
      description: what the scores are of.
      sizes: int32 `[N, 2]`, height and width of every map.
      maps: of every image once, in any order, its index and its arrays `[H, W, ...]`.
      num_classes: K.
      keep: how many of the highest scores are kept; 0 for all.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # left by a process that was killed
    unfinished.mkdir()
    try:
        ends = np.cumsum(sizes.prod(1, dtype=np.int64))
        files = {
            name: np.lib.format.open_memmap(
                unfinished / f"{name}.npy", "w+", _stored(kind), (int(ends[-1]), *shape)
            )
            for name, (shape, kind) in layout(num_classes, keep).items()
        }
        for index, arrays in maps:
            for name, file in files.items():
                cells = arrays[name].reshape(-1, *file.shape[1:])
                file[ends[index] - len(cells) : ends[index]] = cells.view(file.dtype)
        for file in files.values():
            file.flush()
        np.save(unfinished / "sizes.npy", sizes)
        (unfinished / _DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")
        unfinished.rename(path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _stored(kind: np.dtype) -> np.dtype:
    return np.dtype(np.uint16) if kind == _HALF else kind
