"""Images beside their label maps, and label maps as files."""

import base64
import dataclasses
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kdjax.reporting import figures
from kdjax.reporting.figures import full_palette
from kdjax.reporting.results import Example

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


_SIDE = 512  # pixels; larger pictures are reduced, so that the file stays easy to send

ONLY_DISTILLED, ONLY_PLAIN, NEITHER = 1, 2, 3
"""Who is right where two students disagree; 0 where they agree, or the label is ignored."""

COLORS = {ONLY_DISTILLED: figures.GAIN, ONLY_PLAIN: figures.LOSS, NEITHER: figures.TEACHER_COLOR}


@dataclasses.dataclass(frozen=True)
class Panels:
    """Pictures of one example as data URIs, by caption.

    Attributes:
      shown: Image, label, teacher, plain student, the best distilled one, their disagreement.
      folded: The other distilled students and where each disagrees with the plain one.
      compared: Whether there are pictures of disagreement.
    """

    shown: Mapping[str, str]
    folded: Mapping[str, str]
    compared: bool


def panels(
    example: Example,
    palette: np.ndarray,
    *,
    plain: str | None,
    distilled: Collection[str],
    best: str | None,
) -> Panels:
    """Pictures of an example.

    Args:
      example: With its predictions by method.
      palette: `[K, 3]` uint8.
      plain: The method that is the plain student.
      distilled: The methods that are compared with it.
      best: The one of them that is not folded away; None folds nothing away.
    """
    shown = {"image": _photograph(example.image), "label": _label_map(example.label, palette)}
    folded: dict[str, str] = {}
    of_plain = example.predictions.get(plain) if plain else None
    for name, prediction in example.predictions.items():
        pictures = folded if best is not None and name in distilled and name != best else shown
        pictures[name] = _label_map(prediction, palette)
        if of_plain is not None and name in distilled:
            codes = disagreement(prediction, of_plain, example.label, len(palette))
            pictures[f"{name} ≠ {plain}"] = _disagreement_map(codes)
    return Panels(shown, folded, of_plain is not None and bool(distilled))


def disagreement(
    distilled: np.ndarray, plain: np.ndarray, label: np.ndarray, num_classes: int
) -> np.ndarray:
    """Who is right at each pixel.

    Args:
      distilled: `[H, W]` uint8, the distilled student's classes.
      plain: `[H, W]` uint8, the plain one's.
      label: `[H, W]` uint8; what is not a class is ignored.
      num_classes: K.

    Returns:
      `[H, W]` uint8: `ONLY_DISTILLED`, `ONLY_PLAIN`, `NEITHER`, or 0.
    """
    differ = (distilled != plain) & (label < num_classes)
    codes = np.select([distilled == label, plain == label], [ONLY_DISTILLED, ONLY_PLAIN], NEITHER)
    return np.where(differ, codes, 0).astype(np.uint8)


def css_color(rgb: Iterable[int]) -> str:
    """`#rrggbb`."""
    return "#" + bytes(map(int, rgb)).hex()


def _photograph(image: np.ndarray) -> str:
    """`[H, W, 3]` uint8 as a data URI."""
    picture = Image.fromarray(image)
    picture.thumbnail((_SIDE, _SIDE))
    return _data_uri(picture, "JPEG", quality=90, subsampling=0)


def _label_map(label: np.ndarray, palette: np.ndarray) -> str:
    """`[H, W]` uint8 as a data URI: a PNG of class numbers with the palette, a few kB."""
    picture = Image.fromarray(label)
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.NEAREST)
    picture.putpalette(figures.full_palette(palette).tobytes())
    return _data_uri(picture, "PNG", optimize=True)


def _disagreement_map(codes: np.ndarray) -> str:
    """What `disagreement` returns as a data URI; the page is seen where its code is 0."""
    picture = Image.fromarray(codes)
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.NEAREST)
    picture.putpalette(b"\0\0\0" + b"".join(bytes.fromhex(c[1:]) for c in COLORS.values()))
    return _data_uri(picture, "PNG", optimize=True, transparency=0)


def _data_uri(picture: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
