"""Label maps as files: PNGs of class numbers with a palette, overlays on photos, a legend."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kdjax.reporting.figures import full_palette

_ROW, _MARGIN = 24, 8  # of the legend, in pixels


def label_png(values: np.ndarray, colors: np.ndarray) -> bytes:
    """A palette PNG, which readers of labels take as numbers and viewers show in colour.

    Args:
        values: `[H, W]` uint8.
        colors: `[256, 3]` uint8, of each value.
    """
    picture = Image.fromarray(values)
    picture.putpalette(colors.tobytes())
    return _png(picture)


def overlay_png(image: np.ndarray, label: np.ndarray, palette: np.ndarray, opacity: float) -> bytes:
    """The image under the colours of its classes.

    Args:
        image: `[H, W, 3]` uint8.
        label: `[H, W]` uint8, class numbers.
        palette: `[K, 3]` uint8.
        opacity: of the colours, 0 to 1.
    """
    colors = Image.fromarray(full_palette(palette)[label])
    return _png(Image.blend(Image.fromarray(image), colors, opacity))


def legend_png(class_names: Sequence[str], palette: np.ndarray) -> bytes:
    """The colour, number and name of every class, a row each."""
    font = ImageFont.load_default(14)
    rows = [f"{number}  {name}" for number, name in enumerate(class_names)]
    width = 3 * _MARGIN + _ROW + int(max(font.getlength(row) for row in rows)) + 1
    picture = Image.new("RGB", (width, 2 * _MARGIN + _ROW * len(rows)), "white")
    draw = ImageDraw.Draw(picture)
    for number, row in enumerate(rows):
        top = _MARGIN + _ROW * number
        box = (_MARGIN, top + 2, _MARGIN + _ROW, top + _ROW - 3)
        color = tuple(int(value) for value in palette[number])
        draw.rectangle(box, fill=color, outline="gray")
        middle = (2 * _MARGIN + _ROW, top + _ROW / 2)
        draw.text(middle, row, fill="black", font=font, anchor="lm")
    return _png(picture)


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=3)  # three times faster than 6, a little larger
    return buffer.getvalue()
