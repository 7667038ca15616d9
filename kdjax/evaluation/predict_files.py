"""Predicts image files: label maps, overlays, and a legend."""

import collections
import dataclasses
import glob
import io
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kdjax.data.loading.sampling import BatchIndices, batch_by_size
from kdjax.data.preparing.band_files import IMAGE_SUFFIXES, Form, read_bands, size_of
from kdjax.data.preparing.image_io import SUFFIXES, read_photo, upright_size
from kdjax.evaluation.evaluator import TrainedNetwork
from kdjax.evaluation.large_images import in_strips, label_strips
from kdjax.reporting.pictures import (
    blend,
    full_palette,
    label_png,
    legend_png,
    rgb_png,
)
from kdjax.training.sharding import Placement
from kdjax.utils.bands import RGB, Bands
from kdjax.utils.errors import UserError
from kdjax.utils.files import is_remote, why_unwritable, write_atomically

_THREADS = 4  # read and write files while the network computes
_AHEAD = 2  # batches that are read before they are needed
_KINDS = ("labels", "overlays", "scores")  # folders of results
# What is saved of the class scores, at the size of the image, as float16 [H, W, K].
Saved = Literal["none", "scores", "probabilities"]
SAVED: tuple[str, ...] = get_args(Saved)
LEGEND = "legend.png"

# Images [B, H, W, C], their sizes [B, 2] (0 for a blank row), and the errors of damaged files.
DecodedBatch = tuple[np.ndarray, np.ndarray, list[UserError]]


@dataclasses.dataclass(frozen=True)
class Files:
    """An image file and its results."""

    image: pathlib.Path
    label: pathlib.Path
    overlay: pathlib.Path
    scores: pathlib.Path


@dataclasses.dataclass
class Timing:
    """The number of predicted images, and the time of a prediction.

    Attributes:
      images: number of images.
      seconds: wall time, including reading, writing, and compiling.
      network_images: images in batches that needed no compilation.
      network_seconds: wall time of the network on these images, including transfers.
      shapes: number of shapes that the network was compiled for.
    """

    images: int = 0
    seconds: float = 0.0
    network_images: int = 0
    network_seconds: float = 0.0
    shapes: int = 0

    def __str__(self) -> str:
        rate = f"{self.images / self.seconds:.2f} images/s" if self.images else "none"
        network = (
            f"{1000 * self.network_seconds / self.network_images:.1f} ms per image"
            if self.network_images
            else "not timed, since every batch was compiled for"
        )
        images, sizes = (
            f"{count} {noun}{'' if count == 1 else 's'}"
            for count, noun in ((self.images, "image"), (self.shapes, "size"))
        )
        return (
            f"{images} in {self.seconds:.1f} s ({rate}, with reading, writing and compiling for "
            f"{sizes} of images); network: {network}"
        )


def find_images(pattern: str, output: str, *, overwrite: bool, bands: Bands = RGB) -> list[Files]:
    """Finds the images of a folder or a pattern, and names their results.

    Results are `labels/*.png`, `overlays/*.png`, and perhaps `scores/*.npy`. Their names are the
    paths of the images from the last folder of the pattern without a wildcard.

    Args:
      pattern: a pattern for `glob`; or a folder, without the folders inside it.
      output: the folder of the results and of `legend.png`.
      overwrite: True to replace existing results. Images are never replaced.
      bands: the bands of the images. Photos are no .npy files.

    Raises:
      UserError: if no image matches, two results have the same name, a result exists, or an image
        lies in the place of a result.
    """
    if is_remote(output):
        raise UserError(f"--output is {output}; it must be a local folder")
    folder = pathlib.Path(output)
    if os.path.isdir(pattern):
        root = pattern
        images = [path for path in sorted(pathlib.Path(root).iterdir()) if _is_image(path, bands)]
    else:
        root = _fixed_part(pattern)
        paths = sorted(set(glob.glob(pattern, recursive=True)))
        images = [pathlib.Path(path) for path in paths if os.path.isfile(path)]
    if not images:
        raise UserError(
            f"--images {pattern!r} matches no file; name a folder with images, or quote a pattern, "
            "as 'photos/**/*.jpg'"
        )
    files = _results_of(images, root, folder)
    results = [folder / LEGEND]
    results += [path for one in files for path in (one.label, one.overlay, one.scores)]
    _check_apart(images, results, folder)
    existing = [path for path in results if os.path.lexists(path)]
    if existing and not overwrite:
        raise UserError(
            f"{existing[0]} exists ({len(existing)} such files); --overwrite replaces them"
        )
    return files


def find_photos(folder: pathlib.Path, bands: Bands = RGB) -> dict[str, pathlib.Path]:
    """Returns all images of a folder and of the folders inside it.

    Args:
      folder: the folder.
      bands: as in `find_images`.

    Returns:
      The images by their paths below the folder, without the suffix, in order.

    Raises:
      UserError: if there is no image, or two differ only in their suffix.
    """
    found: dict[str, pathlib.Path] = {}
    for path in sorted(folder.rglob("*")):
        below = path.relative_to(folder)
        if not _is_image(path, bands) or any(part.startswith(".") for part in below.parts):
            continue
        other = found.setdefault(below.with_suffix("").as_posix(), path)
        if other != path:
            raise UserError(f"{other} and {path} have the same name; rename one")
    if not found:
        raise UserError(f"--images {folder} is no folder with images ({', '.join(SUFFIXES)})")
    return found


def _is_image(path: pathlib.Path, bands: Bands) -> bool:
    suffixes = SUFFIXES if bands == RGB else IMAGE_SUFFIXES
    return path.suffix.lower() in suffixes and path.is_file() and not path.name.startswith(".")


def _fixed_part(pattern: str) -> str:
    """Returns the last folder of a pattern before the first wildcard."""
    folder = os.path.dirname(pattern)
    while glob.has_magic(folder):
        folder = os.path.dirname(folder)
    return folder or "."


def _results_of(images: Sequence[pathlib.Path], root: str, output: pathlib.Path) -> list[Files]:
    """Names the results of each image by its path from `root`.

    Raises:
      UserError: if two results have the same name.
    """
    files: list[Files] = []
    sources: dict[str, pathlib.Path] = {}
    for image in images:
        name = pathlib.Path(os.path.relpath(image, root)).with_suffix(".png")
        # Some file systems ignore case.
        other = sources.setdefault(str(name).casefold(), image)
        if other != image:
            raise UserError(
                f"{other} and {image} would both be written to {name}, or to names that differ in "
                "case alone"
            )
        label, overlay, scores = (output / kind / name for kind in _KINDS)
        files.append(Files(image, label, overlay, scores.with_suffix(".npy")))
    return files


def _check_apart(
    images: Sequence[pathlib.Path], results: Sequence[pathlib.Path], output: pathlib.Path
) -> None:
    """Checks that no image lies where results are written, also not through symbolic links.

    Raises:
      UserError: for the first image that does.
    """
    folders = {(output / kind).resolve() for kind in _KINDS}
    places = {_place(path) for path in results}
    for image in images:
        # A result replaces a link itself, and not its target.
        kept = {_place(image), image.resolve()}
        if kept & places or any(folders & set(path.parents) for path in kept):
            raise UserError(
                f"{image} lies where --output {output} has results; name another --output"
            )


def _place(path: pathlib.Path) -> pathlib.Path:
    """Returns the absolute path without linked folders. The file itself may be a link."""
    return path.parent.resolve() / path.name


def predict_files(
    network: TrainedNetwork,
    files: Sequence[Files],
    output: str,
    *,
    batch_size: int,
    pad_to: int = 1,
    values: Sequence[int] | None = None,
    opacity: float = 0.5,
    save: Saved = "none",
) -> Timing:
    """Writes the label map and the overlay of every image, a legend, and perhaps class scores.

    A file appears when it is complete. Damaged images are skipped, and named at the end.

    Args:
      network: the network, with its inference.
      files: from `find_images`.
      output: the folder of the legend.
      batch_size: images predicted at once, on all devices together.
      pad_to: see `kdjax.data.loading.sampling.batch_by_size`.
      values: the value of each class in the label maps; None for its number.
      opacity: of the colors over the image, 0 to 1.
      save: the class scores to write as well.

    Raises:
      UserError: if an image cannot be read, or a file cannot be written.
    """
    placement = Placement()
    placement.check_images_at_once(batch_size)
    devices = placement.mesh.size
    palette = np.array(network.info.palette, np.uint8)
    inference, bands = network.predictor.inference, network.info.bands
    drawing = _Drawing(palette, _numbers(len(palette), values), opacity, bands)
    timing, started = Timing(), time.perf_counter()
    sizes, damaged = image_sizes([one.image for one in files], bands)
    for index, size in sizes:
        try:
            inference.check_size(size)
        except UserError as error:
            raise UserError(f"{files[index].image}: {error}") from error
    # Saved scores are as large as what strips avoid.
    large = [] if save != "none" else [i for i, size in sizes if in_strips(size, inference)]
    batches = batch_by_size(
        [(index, size) for index, size in sizes if index not in large],
        # A larger batch would have blank rows only.
        min(batch_size, max(1, -(-len(files) // devices)) * devices),
        pad_to=pad_to,
        exact_below=inference.exact_below,
    )
    predict = _timed(network, placement, timing, save)
    try:
        legend = legend_png(network.info.class_names, palette)
        write_atomically(pathlib.Path(output) / LEGEND, legend)
        damaged += _predict_batches(predict, files, batches, drawing)
        for index in large:
            damaged += _predict_large(network, placement, files[index], timing, drawing)
    except OSError as error:
        raise UserError(f"cannot write to --output {output}: {why_unwritable(error)}") from error
    timing.seconds = time.perf_counter() - started
    if damaged:
        raise UserError(f"{len(damaged)} of {len(files)} images were left out: {damaged[0]}")
    return timing


@dataclasses.dataclass(frozen=True)
class _Drawing:
    """The way from predictions to files.

    Attributes:
      palette: an RGB color for each class, uint8 [K, 3].
      numbers: the value of each class in the label maps, uint8 [K].
      opacity: of the colors over the image, 0 to 1.
      bands: the bands of the images.
    """

    palette: np.ndarray
    numbers: np.ndarray
    opacity: float
    bands: Bands

    def write(
        self, one: Files, image: np.ndarray, label: np.ndarray, scores: np.ndarray | None
    ) -> None:
        """Writes the results of an image."""
        self.write_both(one, self.over(image, label), label)
        if scores is not None:
            write_atomically(one.scores, npy(scores))

    def over(self, image: np.ndarray, label: np.ndarray) -> np.ndarray:
        """Returns the colors of a label map over the picture of an image."""
        return blend(self.bands.picture(image), label, self.palette, self.opacity)

    def write_both(self, one: Files, overlay: np.ndarray, label: np.ndarray) -> None:
        """Writes an overlay and a label map."""
        colors = full_palette(self.palette)
        colors[self.numbers] = self.palette
        write_atomically(one.label, label_png(self.numbers[label], colors))
        write_atomically(one.overlay, rgb_png(overlay))


def _predict_batches(
    predict: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray | None]],
    files: Sequence[Files],
    batches: Iterable[BatchIndices],
    drawing: _Drawing,
) -> list[UserError]:
    """Labels whole images in batches. Returns the errors of damaged files."""
    damaged: list[UserError] = []
    paths = [one.image for one in files]
    with ThreadPoolExecutor(_THREADS) as pool:
        writing: list[Future[None]] = []
        for batch, (images, extents, errors) in read_ahead(pool, paths, batches, drawing.bands):
            damaged += errors
            labels, scores = predict(images, extents)
            # Waits for the previous batch, so that few images are in memory.
            for written in writing:
                written.result()
            writing = []
            for row in np.flatnonzero(extents.all(axis=1)):
                height, width = extents[row]
                place = np.s_[row, :height, :width]
                kept = None if scores is None else scores[place]
                pixels = images[place], labels[place], kept
                writing.append(pool.submit(drawing.write, files[batch.indices[row]], *pixels))
        for written in writing:
            written.result()
    return damaged


def _predict_large(
    network: TrainedNetwork,
    placement: Placement,
    one: Files,
    timing: Timing,
    drawing: _Drawing,
) -> list[UserError]:
    """Labels an image in strips. Returns the error if its file is damaged."""
    bands, predictor = network.info.bands, network.predictor
    variables = placement.replicate(network.variables)
    started, compiled = time.perf_counter(), len(predictor.shapes)
    try:
        image = _pixels(one.image, bands)
    except UserError as error:
        return [error]
    # The overlay takes the place of the pixels that no later window reads.
    overlay = image if bands == RGB else np.empty((*image.shape[:2], 3), np.uint8)
    label, top = np.empty(image.shape[:2], np.uint8), 0

    def look(windows: np.ndarray) -> np.ndarray:
        return np.asarray(predictor.look(variables, placement.put_images(windows)))

    for rows in label_strips(look, image, predictor.inference, batch_size=placement.mesh.size):
        place = np.s_[top : top + len(rows)]
        label[place] = rows
        overlay[place] = drawing.over(image[place], rows)
        top += len(rows)
    drawing.write_both(one, overlay, label)
    timing.images += 1
    timing.shapes = len(predictor.shapes)
    if timing.shapes == compiled:
        timing.network_images += 1
        timing.network_seconds += time.perf_counter() - started
    return []


def image_sizes(
    images: Sequence[pathlib.Path], bands: Bands
) -> tuple[list[tuple[int, tuple[int, int]]], list[UserError]]:
    """Returns index and size of every image that can be opened, and the errors of the others."""
    sizes, damaged = [], []
    with ThreadPoolExecutor(_THREADS) as pool:
        opened = [pool.submit(upright_size if bands == RGB else size_of, path) for path in images]
    for index, reading in enumerate(opened):
        try:
            sizes.append((index, reading.result()))
        except UserError as error:
            damaged.append(error)
    return sizes, damaged


def _numbers(num_classes: int, values: Sequence[int] | None) -> np.ndarray:
    """Returns the value of each class in a label map, uint8 [K]."""
    numbers = np.arange(num_classes) if values is None else np.array(values)
    if len(numbers) != num_classes:
        raise UserError(
            f"the network scores {num_classes} classes, the data set of --ids has {len(numbers)}"
        )
    if numbers.max() > 255:
        raise UserError(
            f"the values of the classes go up to {numbers.max()}; label maps of 8 bits hold 0..255"
        )
    return numbers.astype(np.uint8)


def npy(array: np.ndarray) -> bytes:
    """Returns the content of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _timed(
    network: TrainedNetwork, placement: Placement, timing: Timing, save: Saved
) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray | None]]:
    """Returns a function from padded images and their sizes to labels and perhaps scores.

    The function counts its time.
    """
    predictor, variables = network.predictor, placement.replicate(network.variables)

    @jax.jit
    def kept(scores: Float[Array, "B H W K"]) -> Float[Array, "B H W K"]:
        return (jax.nn.softmax(scores) if save == "probabilities" else scores).astype(jnp.float16)

    def predict(images: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        started, compiled = time.perf_counter(), len(predictor.shapes)
        arrays = placement.put_batch({"image": images, "size": sizes})
        scores = None
        if save == "none":
            labels = predictor(variables, arrays["image"], arrays["size"])
        else:
            scores = predictor.scores(variables, arrays["image"], arrays["size"])
            labels, scores = jnp.argmax(scores, -1), np.asarray(kept(scores))
        labels = np.asarray(labels).astype(np.uint8)
        number = int(sizes.all(axis=1).sum())
        timing.images += number
        timing.shapes = len(predictor.shapes)
        if timing.shapes == compiled:
            timing.network_images += number
            timing.network_seconds += time.perf_counter() - started
        return labels, scores

    return predict


def read_ahead(
    pool: ThreadPoolExecutor,
    images: Sequence[pathlib.Path],
    batches: Iterable[BatchIndices],
    bands: Bands,
) -> Iterator[tuple[BatchIndices, DecodedBatch]]:
    """Yields batches with their images, reading the next ones while the caller works."""
    waiting: collections.deque[tuple[BatchIndices, Future[DecodedBatch]]] = collections.deque()
    for batch in batches:
        waiting.append((batch, pool.submit(_read, images, batch, bands)))
        if len(waiting) > _AHEAD:
            first, reading = waiting.popleft()
            yield first, reading.result()
    for first, reading in waiting:
        yield first, reading.result()


def _pixels(path: pathlib.Path, bands: Bands) -> np.ndarray:
    """Returns the pixels of an image, `[H, W, C]`, in an array of their own."""
    if bands == RGB:
        return np.array(read_photo(path, upright=True).pixels)
    return read_bands(path, Form(bands.dtype, bands.channels)).pixels


def _read(paths: Sequence[pathlib.Path], batch: BatchIndices, bands: Bands) -> DecodedBatch:
    shape = (len(batch.indices), *batch.size, bands.channels)
    images = np.full(shape, bands.padding, bands.batch_dtype)
    sizes, damaged = np.zeros((len(batch.indices), 2), np.int32), []
    for row, index in enumerate(batch.indices):
        if index < 0:
            continue
        try:
            pixels = _pixels(paths[index], bands)
        except UserError as error:
            damaged.append(error)
            continue
        height, width = pixels.shape[:2]
        images[row, :height, :width] = pixels
        sizes[row] = height, width
    return images, sizes, damaged
