"""Prediction panels of the report: photographs, label maps, and where two students disagree."""

import base64
import dataclasses
import io
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from kdjax.reporting import figures
from kdjax.reporting.results import Example

_SIDE = 512  # pixels; larger pictures are reduced, so that the file stays easy to send

ONLY_TAUGHT, ONLY_PLAIN, NEITHER = 1, 2, 3
"""Who is right where two students disagree; 0 where they agree, or the label is ignored."""

COLORS = {ONLY_TAUGHT: figures.GAIN, ONLY_PLAIN: figures.LOSS, NEITHER: figures.TEACHER_COLOR}


@dataclasses.dataclass(frozen=True)
class Panels:
    """Pictures of one example as data URIs, by caption.

    Attributes:
        shown: Image, label, teacher, plain student, the best taught one, their disagreement.
        folded: The other taught students and where each disagrees with the plain one.
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
    taught: Collection[str],
    best: str | None,
) -> Panels:
    """Pictures of an example.

    Args:
        example: With its predictions by method.
        palette: `[K, 3]` uint8.
        plain: The method that is the plain student.
        taught: The methods that are compared with it.
        best: The one of them that is not folded away; None folds nothing away.
    """
    shown = {"image": _photograph(example.image), "label": _label_map(example.label, palette)}
    folded: dict[str, str] = {}
    theirs = example.predictions.get(plain) if plain else None
    for name, prediction in example.predictions.items():
        pictures = folded if best is not None and name in taught and name != best else shown
        pictures[name] = _label_map(prediction, palette)
        if theirs is not None and name in taught:
            codes = disagreement(prediction, theirs, example.label, len(palette))
            pictures[f"{name} ≠ {plain}"] = _disagreement_map(codes)
    return Panels(shown, folded, theirs is not None and bool(taught))


def disagreement(
    taught: np.ndarray, plain: np.ndarray, label: np.ndarray, num_classes: int
) -> np.ndarray:
    """Who is right at each pixel.

    Args:
        taught: `[H, W]` uint8, the taught student's classes.
        plain: `[H, W]` uint8, the plain one's.
        label: `[H, W]` uint8; what is not a class is ignored.
        num_classes: K.

    Returns:
        `[H, W]` uint8: `ONLY_TAUGHT`, `ONLY_PLAIN`, `NEITHER`, or 0.
    """
    differ = (taught != plain) & (label < num_classes)
    codes = np.select([taught == label, plain == label], [ONLY_TAUGHT, ONLY_PLAIN], NEITHER)
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
