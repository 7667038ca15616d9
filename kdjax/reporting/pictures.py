"""Label maps in color: as arrays, as PNG files, and as pictures for the HTML report."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

IGNORED_GRAY = 128

_ROW, _MARGIN = 24, 8  # of the legend, in pixels
_MAX_SIDE = 512  # of a picture in an HTML page, in pixels


def full_palette(palette: np.ndarray, other: int = IGNORED_GRAY) -> np.ndarray:
    """Extends a palette `[K, 3]` by one gray level to `[256, 3]` uint8."""
    full = np.full((256, 3), other, np.uint8)
    full[: len(palette)] = palette
    return full


def colorize(label: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Colors a label map.

    Args:
      label: `[H, W]` uint8, class numbers.
      palette: `[K, 3]` uint8.

    Returns:
      `[H, W, 3]` uint8. Values that are no class, such as the ignored 255, are gray.
    """
    return full_palette(palette)[label]


def side_by_side(
    image: np.ndarray,
    label: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    palette: np.ndarray,
) -> np.ndarray:
    """Joins an image, its label, and predictions, for TensorBoard.

    Args:
      image: `[H, W, 3]` uint8.
      label: `[H, W]` uint8.
      predictions: `[H, W]` uint8 of each network.
      palette: `[K, 3]` uint8.

    Returns:
      `[H, (2 + n) W + 4 (1 + n), 3]` uint8, with white gaps.
    """
    gap = np.full((image.shape[0], 4, 3), 255, np.uint8)
    tiles = [image]
    for labels in (label, *predictions.values()):
        tiles += [gap, colorize(labels, palette)]
    return np.concatenate(tiles, axis=1)


def css_color(rgb: Iterable[int]) -> str:
    """Returns `#rrggbb`."""
    return "#" + bytes(map(int, rgb)).hex()


def label_png(values: np.ndarray, colors: np.ndarray) -> bytes:
    """Returns a palette PNG, which programs read as class numbers and viewers show in color.

    Args:
      values: `[H, W]` uint8.
      colors: `[256, 3]` uint8, of each value.
    """
    picture = Image.fromarray(values)
    picture.putpalette(colors.tobytes())
    return _png(picture)


def blend(
    image: np.ndarray, label: np.ndarray, palette: np.ndarray, opacity: float
) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the image blended with the colors of its classes.

    Args:
      image: `[H, W, 3]` uint8.
      label: `[H, W]` uint8, class numbers.
      palette: `[K, 3]` uint8.
      opacity: of the colors, 0 to 1.
    """
    colors = Image.fromarray(colorize(label, palette))
    return np.asarray(Image.blend(Image.fromarray(image), colors, opacity))


def overlay_png(image: np.ndarray, label: np.ndarray, palette: np.ndarray, opacity: float) -> bytes:
    """Returns `blend` as a PNG."""
    return rgb_png(blend(image, label, palette, opacity))


def rgb_png(image: np.ndarray) -> bytes:
    """Returns an image `[H, W, 3]` uint8 as a PNG."""
    return _png(Image.fromarray(image))


def legend_png(class_names: Sequence[str], palette: np.ndarray) -> bytes:
    """Returns a picture of the color, number, and name of every class, one per row."""
    font = ImageFont.load_default(14)
    rows = [f"{number}  {name}" for number, name in enumerate(class_names)]
    width = 3 * _MARGIN + _ROW + int(max(font.getlength(row) for row in rows)) + 1
    picture = Image.new("RGB", (width, 2 * _MARGIN + _ROW * len(rows)), "white")
    draw = ImageDraw.Draw(picture)
    for number, row in enumerate(rows):
        top = _MARGIN + _ROW * number
        box = (_MARGIN, top + 2, _MARGIN + _ROW, top + _ROW - 3)
        draw.rectangle(box, fill=css_color(palette[number]), outline="gray")
        middle = (2 * _MARGIN + _ROW, top + _ROW / 2)
        draw.text(middle, row, fill="black", font=font, anchor="lm")
    return _png(picture)


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=3)  # three times faster than 6, a little larger
    return buffer.getvalue()


def photo_uri(image: np.ndarray) -> str:
    """Encodes an image `[H, W, 3]` uint8 as a JPEG in a data URI, for an HTML page."""
    picture = Image.fromarray(image)
    picture.thumbnail((_MAX_SIDE, _MAX_SIDE))
    return _data_uri(picture, "JPEG", quality=90, subsampling=0)


def label_uri(label: np.ndarray, palette: np.ndarray) -> str:
    """Encodes a label map `[H, W]` uint8 as a PNG of a few kilobytes in a data URI."""
    picture = Image.fromarray(label)
    picture.thumbnail((_MAX_SIDE, _MAX_SIDE), Image.Resampling.NEAREST)
    picture.putpalette(full_palette(palette).tobytes())
    return _data_uri(picture, "PNG", optimize=True)


def _data_uri(picture: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
