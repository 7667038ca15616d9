"""Class scores from files, one file per image, from which a teacher cache is made.

DIR/classes.txt        the class names, one per line, in the order of the last axis
DIR/NAME.npy           the scores [h, w, K] of the training image NAME, of any height and width
DIR/NAME.safetensors   the same, as the only tensor of the file or as "logits"
"""

import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from kdjax.data.run_data import RunData
from kdjax.distillation import Spec
from kdjax.teachers.compression import Compression
from kdjax.teachers.network_maps import ImageMaps
from kdjax.utils.classes import differing_class
from kdjax.utils.errors import UserError
from kdjax.utils.files import is_remote

CLASSES = "classes.txt"
_KEY = "config.teacher.logits"
_ENDINGS = (".npy", ".safetensors")
# The names of floating-point types in Safetensors and in NumPy, which has no bfloat16.
_FLOATS = ("F16", "BF16", "F32", "F64", "float16", "float32", "float64")
_HASHED = 8  # files


class _Header(NamedTuple):
    shape: tuple[int, ...]
    dtype: str


class PrecomputedLogits:
    """The files of `config.teacher.logits`, one for every training image.

    Args:
      directory: the folder of the files.
      images: the images of the run.
      cache_classes: the number of highest scores that the cache keeps; 0 for all.

    Raises:
      UserError: if a file is missing, or its header is wrong.

    Attributes:
      num_classes: K.
      fingerprint: 16 hexadecimal digits of the names, the classes, the shapes of all files, and the
        content of eight of them, evenly spread.
      description: identifies the scores in a cache.
    """

    def __init__(self, directory: str, images: RunData, cache_classes: int):
        if is_remote(directory):
            raise UserError(f"{_KEY} is {directory}; it must be a directory on a disk")
        folder = pathlib.Path(directory)
        _check_classes(folder / CLASSES, images.class_names)
        self.num_classes = images.num_classes
        self._keep = cache_classes
        names = images.train_names()
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f'{_KEY}: two training images are called "{twice}"')
        self._files = [_find(folder, name) for name in names]
        headers = [_header(path, self.num_classes) for path in self._files]
        self._sizes = np.array([header.shape[:2] for header in headers], np.int32)
        self._images = images
        digest = hashlib.sha256(json.dumps([images.class_names, names, headers]).encode())
        for index in np.unique(np.linspace(0, len(names) - 1, _HASHED).astype(int)):
            digest.update(self._files[index].read_bytes())
        self.fingerprint = digest.hexdigest()[:16]
        self.description: dict[str, Any] = {
            "teacher": f"logits {self.fingerprint}",
        }

    @property
    def specs(self) -> dict[str, Spec]:
        """The specs of the maps that replace the teacher's."""
        return {"logits": Spec(self.num_classes)}

    def compressions(self) -> dict[str, Compression]:
        """Returns how the cache stores the scores."""
        return {"logits": Compression(self.num_classes, scores=True, keep=self._keep)}

    def grids(self) -> dict[str, tuple[int, int]]:
        """Returns nothing: scores get the size of the student's."""
        return {}

    def map_sizes(self) -> dict[str, np.ndarray]:
        """Returns height and width of every map, int32 `[N, 2]`."""
        return {"logits": self._sizes}

    def maps(
        self, stored: Mapping[str, Compression], skip: np.ndarray
    ) -> Iterator[tuple[int, ImageMaps]]:
        """Yields the index and the compressed scores of every image.

        Args:
          stored: how the scores are stored, as "logits".
          skip: True for the images that are left out, `[N]`.

        Raises:
          UserError: if a file cannot be read, a score is not finite, or the scores have other
            proportions than the image.
        """
        compress = jax.jit(stored["logits"].compress)
        pairs = zip(self._files, self._sizes.tolist(), self._images.train_sizes(), strict=True)
        for index, (path, cells, pixels) in enumerate(pairs):
            if skip[index]:
                continue
            _check_proportions(path, cells, pixels)
            scores = _scores(path)
            if not (np.abs(scores) <= np.finfo(np.float32).max).all():
                raise UserError(f"{path} holds values that are not finite numbers in float32")
            yield index, {"logits": jax.device_get(compress(scores))}


def _find(folder: pathlib.Path, name: str) -> pathlib.Path:
    # Not `with_suffix`, because names may contain dots.
    files = [folder / f"{name}{ending}" for ending in _ENDINGS]
    found = [path for path in files if path.is_file()]
    if not found:
        raise UserError(
            f"{files[0]} (or {_ENDINGS[1]}) is missing: {_KEY} needs a file for every "
            "training image, called by its name"
        )
    if len(found) > 1:
        raise UserError(f"{found[0]} and {found[1].name} are both there; remove one of them")
    return found[0]


def _check_classes(path: pathlib.Path, wanted: Sequence[str]) -> None:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{_KEY}: {path} cannot be read ({getattr(error, 'strerror', None) or error}): it must "
            "hold the names of the classes that the logits score, a line each"
        ) from error
    found = [line.strip() for line in lines if line.strip()]
    if difference := differing_class(wanted, found):
        raise UserError(
            f"{path}: the logits score other classes than the data ({difference}); order and names "
            "must be those of the data"
        )


def _header(path: pathlib.Path, num_classes: int) -> _Header:
    """Returns shape and dtype without reading the values, and checks them."""
    try:
        if path.suffix == ".npy":
            array: Any = np.load(path, mmap_mode="r", allow_pickle=False)
            header = _Header(array.shape, str(array.dtype))
        else:
            with _opened(path) as file:
                entry = file.get_slice(_tensor(path, file))
                header = _Header(tuple(entry.get_shape()), entry.get_dtype())
    except UserError:
        raise
    # Both libraries raise errors of any class on damaged files.
    except Exception as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    shape, dtype = header
    wanted = f"it must be floating-point numbers [h, w, {num_classes}]"
    if len(shape) == 3 and shape[0] == num_classes != shape[2]:
        raise UserError(
            f"{path} is {list(shape)}, with the classes first; {wanted}, as "
            "np.moveaxis(logits, 0, -1) makes it"
        )
    if len(shape) != 3 or shape[2] != num_classes or 0 in shape or dtype not in _FLOATS:
        raise UserError(f"{path} is {dtype} {list(shape)}; {wanted}")
    return header


def _check_proportions(path: pathlib.Path, cells: Sequence[int], pixels: Sequence[int]) -> None:
    (rows, columns), (height, width) = cells, pixels
    # Sizes are rounded to cells, so each may be one cell off.
    if abs(rows * width - columns * height) > width + height:
        raise UserError(
            f"{path} has {rows} x {columns} cells, but its image has {height} x {width} pixels: "
            "the scores must cover the whole image, and nothing else"
        )


def _scores(path: pathlib.Path) -> Float[np.ndarray, "h w K"]:
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        with _opened(path) as file:
            return file.get_tensor(_tensor(path, file))
    except Exception as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _opened(path: pathlib.Path) -> Any:
    # An optional dependency, which only these files need.
    import safetensors

    return safetensors.safe_open(path, framework="numpy")


def _tensor(path: pathlib.Path, file: Any) -> str:
    names = list(file.keys())
    if len(names) == 1:
        return names[0]
    if "logits" in names:
        return "logits"
    raise UserError(f'{path} holds {", ".join(names) or "nothing"}; call one of them "logits"')
