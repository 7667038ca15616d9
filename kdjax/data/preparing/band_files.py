"""Reads images that are not 8-bit photos: TIFF files of several bands, 16-bit PNG, and NumPy files.

TIFF files are read by tifffile, which is optional: `pip install "kdjax[bands]"`.
"""

import dataclasses
import importlib
import pathlib
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from kdjax.data.preparing.image_io import (
    PNG_DEPTH,
    SUFFIXES,
    DamagedFile,
    is_tiff_photo,
    upright_size,
)
from kdjax.utils.bands import MOST, TYPES
from kdjax.utils.errors import UserError, first_line

IMAGE_SUFFIXES = (*SUFFIXES, ".npy")  # in lower case
_TIFF = (".tif", ".tiff")
_PARSING = threading.Lock()
# By the byte after the depth of a PNG file, the bands without transparency.
_PNG_BANDS = {0: 1, 2: 3, 4: 1, 6: 3}


class Form(NamedTuple):
    """The number type and the number of the bands of an image."""

    dtype: str
    channels: int

    def __str__(self) -> str:
        return f"{self.channels} band{'s' if self.channels > 1 else ''} of {self.dtype}"


PHOTO = Form("uint8", 3)


@dataclasses.dataclass(frozen=True)
class BandImage:
    """An image `[H, W, C]` that is not a photo, with the methods of `Photo`."""

    pixels: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.pixels.shape[:2]
        return height, width

    def encode(self) -> list[bytes]:
        """Returns the compressed values."""
        return self._encode(tiled=False)

    def encode_tiles(self) -> list[bytes]:
        """Returns the compressed values of tiles."""
        return self._encode(tiled=True)

    def _encode(self, *, tiled: bool) -> list[bytes]:
        from kdjax.data.loading import records

        return records.encode_bands(self.pixels, tiled=tiled)


def form_of(path: pathlib.Path) -> Form:
    """Returns the form of an image from its header: `PHOTO`, or its bands.

    A gray image of 8 bits is a photo, and so is every image that is turned into 8-bit RGB without
    losing anything but transparency.

    Raises:
      UserError: if the file cannot be read, or has other numbers or axes than a network can take.
    """
    return _header(path)[0]


def size_of(path: pathlib.Path) -> tuple[int, int]:
    """Returns height and width of an image of any form, from its header."""
    form, size = _header(path)
    return upright_size(path) if form == PHOTO else size


def read_bands(path: pathlib.Path, wanted: Form) -> BandImage:
    """Reads an image of several bands.

    Args:
      path: the file.
      wanted: the form that the image must have.

    Raises:
      UserError: if the file cannot be read, has another form, or holds NaN or infinity.
    """
    found = form_of(path)
    if found != wanted:
        name = "an 8-bit photo" if found == PHOTO else f"an image with {found}"
        raise UserError(f"{path} is {name}; this data set or network takes {wanted}")
    if path.suffix.lower() == ".npy":
        pixels = np.array(_attempt(path, lambda: _open_npy(path)))
    elif path.suffix.lower() in _TIFF:
        pixels = _attempt(path, lambda: _read_tiff(path))
    else:
        pixels = _attempt(path, lambda: _read_png(path, found.channels))
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if not np.isfinite(pixels).all():
        raise UserError(
            f"{path} holds NaN or infinity: give those pixels a number, and 255 in the label, "
            "which is ignored"
        )
    return BandImage(pixels)


def _attempt(path: pathlib.Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except UserError:
        raise
    except Exception as error:  # Each library has its own errors for malformed bytes.
        raise DamagedFile(f"{path} cannot be read as an image: {first_line(error)}") from error


def _header(path: pathlib.Path) -> tuple[Form, tuple[int, int]]:
    suffix = path.suffix.lower()
    if suffix == ".npy":
        array = _attempt(path, lambda: _open_npy(path))
        return _checked(path, array.dtype, array.shape, "[H, W, C] or [H, W]")
    if suffix in _TIFF and not _is_tiff_photo(path):
        dtype, shape = _attempt(path, lambda: _tiff_header(path))
        return _checked(path, dtype, shape, "[H, W, C], [C, H, W], or [H, W]")
    if suffix == ".png":
        header = _attempt(path, lambda: _first_bytes(path, PNG_DEPTH + 2))
        if len(header) == PNG_DEPTH + 2 and header[1:4] == b"PNG" and header[PNG_DEPTH] == 16:
            width, height = (int.from_bytes(header[at : at + 4], "big") for at in (16, 20))
            return Form("uint16", _PNG_BANDS[header[PNG_DEPTH + 1]]), (height, width)
    return PHOTO, (0, 0)


def _open_npy(path: pathlib.Path) -> np.ndarray:
    # NumPy parses the header by `ast`, which fails in Python 3.11 if several threads do so at once.
    with _PARSING:
        return np.load(path, mmap_mode="r", allow_pickle=False)


def _first_bytes(path: pathlib.Path, count: int) -> bytes:
    with path.open("rb") as file:
        return file.read(count)


def _checked(
    path: pathlib.Path, dtype: np.dtype, shape: tuple[int, ...], axes: str
) -> tuple[Form, tuple[int, int]]:
    if len(shape) not in (2, 3) or not 1 <= (shape[2] if len(shape) == 3 else 1) <= MOST:
        raise UserError(
            f"{path} has the shape {list(shape)}; an image is {axes}, with at most {MOST} bands C"
        )
    if str(dtype) not in TYPES:
        raise UserError(
            f"{path} holds {dtype}; kdjax reads {', '.join(TYPES)}: save it as one of them"
        )
    return Form(str(dtype), shape[2] if len(shape) == 3 else 1), (shape[0], shape[1])


def _is_tiff_photo(path: pathlib.Path) -> bool:
    try:
        with Image.open(path) as image:
            return is_tiff_photo(image)
    except Exception:  # Pillow does not know such files.
        return False


def _tifffile(path: pathlib.Path) -> Any:
    try:
        return importlib.import_module("tifffile")
    except ImportError as error:
        raise UserError(
            f'{path} is a TIFF file that only tifffile reads: pip install "kdjax[bands]"'
        ) from error


def _tiff_header(path: pathlib.Path) -> tuple[np.dtype, tuple[int, ...]]:
    with _tifffile(path).TiffFile(path) as file:
        series = file.series[0]
        order = _order(path, series.axes, series.shape)
        return series.dtype, tuple(series.shape[axis] for axis in order)


def _read_tiff(path: pathlib.Path) -> np.ndarray:
    with _tifffile(path).TiffFile(path) as file:
        series = file.series[0]
        order = _order(path, series.axes, series.shape)
        pixels = series.asarray().transpose(order)
    return np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder("=")))


def _order(path: pathlib.Path, axes: str, shape: tuple[int, ...]) -> list[int]:
    """Returns the axes of rows, columns, and bands, in this order."""
    others = [index for index, axis in enumerate(axes) if axis not in "YX"]
    if len(others) > 1 or "Y" not in axes or "X" not in axes:
        raise UserError(
            f"{path} has the axes {axes} of {list(shape)}; an image has rows, columns, and bands"
        )
    return [axes.index("Y"), axes.index("X"), *others]


def _read_png(path: pathlib.Path, channels: int) -> np.ndarray:
    # Pillow would reduce 16-bit RGB to 8 bits.
    from kdjax.data import _tensorflow

    tf: Any = _tensorflow.tf
    return tf.io.decode_png(path.read_bytes(), channels=channels, dtype=tf.uint16).numpy()
