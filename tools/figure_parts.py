"""Parts of the pictures of docs/methods: images, maps with a color scale, marked pixels."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kdjax.data.run_data import RunData
from kdjax.reporting.pictures import colorize

MAGNITUDE, SIGNED = "viridis", "RdBu_r"


def colored(label: np.ndarray, images: RunData) -> np.ndarray:
    """Returns a label map in the colors of its classes."""
    return colorize(np.asarray(label, np.uint8), np.asarray(images.palette))


def grid(rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    """Returns a figure with a grid of square axes."""
    figure = Figure(figsize=(8, 2.7 * rows), layout="constrained")
    return figure, figure.subplots(rows, columns)


def mark(axis: Axes, place: tuple[float, ...], name: str) -> None:
    """Writes the name of a pixel at its place."""
    row, column = place
    box = {"boxstyle": "circle,pad=0.15", "fc": "white", "ec": "black", "lw": 1}
    axis.text(column, row, name, ha="center", va="center", fontsize=8, color="black", bbox=box)


def show_image(axis: Axes, image: np.ndarray, title: str) -> None:
    """Shows an image without a color scale."""
    bar = _show(axis, image, title)
    # The hidden scale keeps its space, so that images and maps are aligned.
    bar.solids.set_visible(False)
    bar.ax.tick_params(colors="none")


def show_map(axis: Axes, values: np.ndarray, title: str, low: float, high: float | None) -> None:
    """Shows magnitudes, with a color scale below."""
    _show(axis, values, title, cmap=MAGNITUDE, vmin=low, vmax=high)


def show_signed(axis: Axes, values: np.ndarray, title: str, limit: float | None = None) -> None:
    """Shows signed values, zero in white, with a color scale below."""
    limit = limit or float(np.abs(values).max())
    _show(axis, values, title, cmap=SIGNED, vmin=-limit, vmax=limit)


def _show(axis: Axes, values: np.ndarray, title: str, **scale: Any) -> Any:
    image = axis.imshow(values, interpolation="nearest", **scale)
    axis.set_title(title)
    axis.set_axis_off()
    bar = axis.figure.colorbar(
        image, ax=axis, location="bottom", fraction=0.06, pad=0.03, aspect=18
    )
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(labelsize=8, length=2)
    bar.locator = MaxNLocator(4)
    bar.update_ticks()
    return bar
