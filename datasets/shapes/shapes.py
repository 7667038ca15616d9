"""Builder of `shapes`: procedural scenes that need no download."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Bool, Float32, UInt8
from scipy import ndimage

from kdjax.data.preparing.builder import SegmentationBuilder, encode_png

SIZE = 96  # pixels, both sides
SPLITS = {"train": 800, "val": 200, "test": 200}

_SEED = 20_261_121
_Window = tuple[slice, slice]  # rows and columns of a scene
# Standard deviation of an object's color from the color of its class, in 0..1.
_COLOR_SPREAD = 0.1
_OVERSAMPLING = 2  # samples per pixel and axis of an outline


class Shapes(SegmentationBuilder):
    """Textured, overlapping shapes among clutter of the same colors and textures.

    Every class has a color, but objects vary around it so that neighboring classes overlap. Every
    third piece of clutter has the color of a class. A network that sees a few pixels scores above
    chance, and one that also sees outlines scores higher.
    """

    NEEDS_SOURCE: ClassVar[bool] = False

    @property
    def palette(self) -> UInt8[np.ndarray, "K 3"]:
        """Gray for the background, then the mean colors of the classes."""
        colors = [[0.35] * 3, *(_class_color(kind) for kind in range(len(OUTLINES)))]
        return np.round(np.array(colors) * 255).astype(np.uint8)

    @property
    def class_names(self) -> list[str]:
        """The background and the outlines."""
        return ["background", *OUTLINES]

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        del dl_manager
        return {
            split: self._generate_examples(split, number) for number, split in enumerate(SPLITS)
        }

    def _generate_examples(self, split: str, number: int) -> Iterator[tuple[int, dict]]:
        for index in range(SPLITS[split]):
            image, label = scene(np.random.default_rng([_SEED, number, index]))
            name = f"{split}_{index:04d}"
            yield index, {"image": encode_png(image), "label": encode_png(label), "name": name}


def scene(
    rng: np.random.Generator, size: int = SIZE
) -> tuple[UInt8[np.ndarray, "size size 3"], UInt8[np.ndarray, "size size"]]:
    """Draws one scene: background, clutter, objects from back to front, clutter in front."""
    everywhere = (slice(0, size), slice(0, size))
    image = _texture(rng, everywhere, None)
    label = np.zeros((size, size), np.uint8)

    def paint(window: _Window, coverage: np.ndarray, class_id: int, like: int | None) -> None:
        texture = _texture(rng, window, like)
        image[window] += coverage[..., None] * (texture - image[window])
        label[window][coverage >= 0.5] = class_id

    for _ in range(rng.integers(1, 4)):
        paint(everywhere, _blob(rng, size), 0, _clutter_class(rng))
    for _ in range(rng.integers(3, 7)):
        kind = int(rng.integers(len(OUTLINES)))
        window, coverage = _object(rng, size, list(OUTLINES.values())[kind])
        paint(window, coverage, kind + 1, kind)
    for _ in range(rng.integers(0, 3)):
        paint(everywhere, _bar(rng, everywhere), 0, _clutter_class(rng))
    return _photograph(rng, image), label


def _clutter_class(rng: np.random.Generator) -> int | None:
    """Returns the class whose colors a piece of clutter has, or None for two of three."""
    kind = int(rng.integers(3 * len(OUTLINES)))
    return kind if kind < len(OUTLINES) else None


def _disk(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.hypot(x, y) < 0.9


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(x, y) - 0.72) < 0.22


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) < 0.8


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (y < 0.55) & (np.abs(x) * math.sqrt(3) - y < 1.1)


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    tenth = math.pi / 5
    tip, notch_along, notch_across = 1.05, 0.45 * math.cos(tenth), 0.45 * math.sin(tenth)
    # Fold the plane onto the tenth between a tip and the notch next to it.
    angle = np.abs((np.arctan2(y, x) + tenth) % (2 * tenth) - tenth)
    radius = np.hypot(x, y)
    along, across = radius * np.cos(angle), radius * np.sin(angle)
    return notch_across * (tip - along) > across * (tip - notch_along)


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    near, far = np.minimum(np.abs(x), np.abs(y)), np.maximum(np.abs(x), np.abs(y))
    return (near < 0.3) & (far < 1)


def _crescent(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (np.hypot(x, y) < 0.95) & (np.hypot(x - 0.45, y) > 0.7)


# Each returns True for points inside a shape of radius about 1 around the origin.
OUTLINES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disk": _disk,
    "ring": _ring,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "crescent": _crescent,
}


def _grid(window: _Window, points: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Returns x and y of the pixels in a window, or of `points` squared samples in each."""
    y, x = (
        side.start + (np.arange((side.stop - side.start) * points, dtype=np.float32) + 0.5) / points
        for side in window
    )
    return x[None, :], y[:, None]


def _turned(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns coordinates along and across a direction."""
    cos, sin = math.cos(angle), math.sin(angle)
    return x * cos + y * sin, y * cos - x * sin


def _object(
    rng: np.random.Generator, size: int, outline: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> tuple[_Window, Float32[np.ndarray, "height width"]]:
    """Draws a shape at a random place, size, aspect, and rotation. Returns window and coverage."""
    center_x, center_y = rng.uniform(0.05 * size, 0.95 * size, 2).tolist()
    radius = size * rng.uniform(0.14, 0.3)
    aspect = rng.uniform(0.85, 1.18)
    turn = rng.uniform(0, 2 * math.pi)
    # Outlines reach at most 1.15 of the radius, times at most 1.18 for the aspect.
    top, left = (max(math.floor(c - 1.4 * radius), 0) for c in (center_y, center_x))
    bottom, right = (min(math.ceil(c + 1.4 * radius), size) for c in (center_y, center_x))
    window = (slice(top, bottom), slice(left, right))
    x, y = _grid(window, _OVERSAMPLING)
    along, across = _turned((x - center_x) / radius, (y - center_y) / radius, turn)
    return window, _coverage(outline(along * aspect, across / aspect))


def _bar(rng: np.random.Generator, window: _Window) -> Float32[np.ndarray, "height width"]:
    """Returns the coverage by a thin bar across the scene, such as a pole or a wire."""
    size = window[0].stop
    turn = rng.uniform(0, math.pi)
    width = size * rng.uniform(0.012, 0.04)
    center_x, center_y = rng.uniform(0.2 * size, 0.8 * size, 2).tolist()
    x, y = _grid(window, _OVERSAMPLING)
    _, across = _turned(x - center_x, y - center_y, turn)
    return _coverage(np.abs(across) < width)


def _blob(rng: np.random.Generator, size: int) -> Float32[np.ndarray, "size size"]:
    """Returns the coverage by a few irregular patches of clutter."""
    # The finer noise keeps patches from being round like disks.
    noise = _smooth_noise(rng, (size, size), rng.uniform(0.07, 0.14) * size)
    noise += 0.4 * _smooth_noise(rng, (size, size), 0.03 * size)
    return np.clip((noise - rng.uniform(0.75, 1.2)) * 12, 0, 1)


def _coverage(
    inside: Bool[np.ndarray, "rows columns"],
) -> Float32[np.ndarray, "height width"]:
    """Returns the share of each pixel's samples inside the shape."""
    starts = itertools.product(range(_OVERSAMPLING), repeat=2)
    samples = [inside[row::_OVERSAMPLING, column::_OVERSAMPLING] for row, column in starts]
    return np.stack(samples).mean(0, dtype=np.float32)


def _smooth_noise(
    rng: np.random.Generator, shape: tuple[int, int], sigma: float
) -> Float32[np.ndarray, "height width"]:
    """Returns Gaussian noise of unit variance with a length scale of `sigma` pixels."""
    noise = ndimage.gaussian_filter(
        rng.standard_normal(shape, np.float32), sigma, mode="wrap", truncate=3
    )
    return noise / noise.std()


def _class_color(kind: int) -> Float32[np.ndarray, "3"]:
    """Returns the color of a class. Hues are evenly spaced."""
    hue = 2 * math.pi * (kind / len(OUTLINES) + np.arange(3) / 3)
    return (0.5 + 0.4 * np.cos(hue)).astype(np.float32)


def _texture(
    rng: np.random.Generator, window: _Window, like: int | None
) -> Float32[np.ndarray, "height width 3"]:
    """Mixes two colors by a random pattern: near the color of a class, or grayish if it is None."""
    x, y = _grid(window)
    shape = (y.size, x.size)
    turn, period = rng.uniform(0, math.pi), rng.uniform(5, 16)
    phase_x, phase_y = rng.uniform(0, period, 2).tolist()
    along, across = (
        np.sin(distance * (2 * math.pi / period))
        for distance in _turned(x + phase_x, y + phase_y, turn)
    )
    match rng.integers(5):
        case 0:  # nearly plain
            pattern = 0.15 * _smooth_noise(rng, shape, 3)
        case 1:  # stripes
            pattern = along
        case 2:  # checks
            pattern = np.tanh(8 * along * across)
        case 3:  # dots
            pattern = np.tanh(6 * (along + across - 0.6))
        case _:  # mottled
            pattern = 0.7 * _smooth_noise(rng, shape, rng.uniform(1.5, 5))
    color = np.full(3, rng.uniform(0.2, 0.8)) if like is None else _class_color(like)
    base = (color + rng.normal(0, _COLOR_SPREAD, 3)).astype(np.float32)
    change = rng.uniform(-0.3, 0.3, 3).astype(np.float32)
    return base + np.clip(0.5 + 0.5 * pattern, 0, 1)[..., None] * change


def _photograph(
    rng: np.random.Generator, image: Float32[np.ndarray, "size size 3"]
) -> UInt8[np.ndarray, "size size 3"]:
    """Adds uneven light, defocus, and sensor noise."""
    x, y = np.meshgrid(*[np.linspace(-0.5, 0.5, len(image), dtype=np.float32)] * 2)
    along, _ = _turned(x, y, rng.uniform(0, 2 * math.pi))
    light = 1 + rng.uniform(0, 0.8) * along
    sigma = rng.uniform(0.2, 0.9)
    image = ndimage.gaussian_filter(image * light[..., None], (sigma, sigma, 0), truncate=3)
    image = image + rng.uniform(0.01, 0.07) * rng.standard_normal(image.shape, np.float32)
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
