"""Labels any images with a network: image files to label maps, overlays and a legend."""

import collections
import dataclasses
import glob
import os
import pathlib
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from kdjax.data.loading.sampling import IMAGE_PADDING, BatchIndices, batch_by_size
from kdjax.data.preparing.image_io import SUFFIXES, read_photo, upright_size
from kdjax.evaluation.evaluator import TrainedNetwork
from kdjax.reporting.pictures import full_palette, label_png, legend_png, overlay_png
from kdjax.training.sharding import Placement
from kdjax.utils.errors import UserError
from kdjax.utils.files import is_remote, why_unwritable, write_atomically

_THREADS = 4  # that read and write files while the network computes
_AHEAD = 2  # batches read before they are needed
_KINDS = ("labels", "overlays")  # folders of results
LEGEND = "legend.png"

# Images, their sizes, and what was wrong with the rest.
DecodedBatch = tuple[np.ndarray, np.ndarray, list[UserError]]


@dataclasses.dataclass(frozen=True)
class Files:
    """An image and what is written about it."""

    image: pathlib.Path
    label: pathlib.Path
    overlay: pathlib.Path


@dataclasses.dataclass
class Timing:
    """What prediction took.

    Attributes:
      images: number of images predicted.
      seconds: wall time, with reading, writing and compiling.
      network_images: of batches for which nothing was compiled.
      network_seconds: the wall time of the network on those, with transfers.
      shapes: compiled for.
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


def find_images(pattern: str, output: str, *, overwrite: bool) -> list[Files]:
    """Finds the images that a pattern matches, or a folder holds, and says where results go.

    Results are named as the images, by their paths from the last folder of the pattern that has
    no wildcard: `labels/*.png` and `overlays/*.png`. Results of an earlier call that the pattern
    matches are no images to label.

    Args:
      pattern: of paths, as `glob` takes it; or a folder, whose own image files count, and not those
        of the folders in it.
      output: the folder of the results and of `legend.png`.
      overwrite: whether results that are there may be replaced; an image never is.

    Raises:
      UserError: it matches no image, two results have one name, a result would replace an image, or
        is there already. No file was read or written then.
    """
    if is_remote(output):
        raise UserError(f"--output is {output}; it must be a local folder")
    folder = pathlib.Path(output)
    if os.path.isdir(pattern):
        root = pattern
        matched = [path for path in sorted(pathlib.Path(root).iterdir()) if _is_image(path)]
    else:
        root = _fixed_part(pattern)
        paths = sorted(set(glob.glob(pattern, recursive=True)))
        matched = [pathlib.Path(path) for path in paths if os.path.isfile(path)]
    if not matched:
        raise UserError(
            f"--images {pattern!r} matches no file; name a folder with images, or quote a pattern, "
            "as 'photos/**/*.jpg'"
        )
    targets = {(folder / kind).resolve() for kind in _KINDS}
    found = [path for path in matched if not targets & set(path.resolve().parents)]
    files = _results_of(found, root, folder)
    results = [path for one in files for path in (one.label, one.overlay)]
    known, labelled = {_entry(path) for path in results}, set(found)
    for path in matched:
        if path not in labelled and _entry(path) not in known:
            raise UserError(
                f"{path} is not the result of any of the images, but lies where --output {output} "
                "has results; name another --output"
            )
    _check_results([folder / LEGEND, *results], found, overwrite=overwrite)
    return files


def _is_image(path: pathlib.Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")


def _results_of(images: Sequence[pathlib.Path], root: str, output: pathlib.Path) -> list[Files]:
    """Names the results of each image by its path from `root`.

    Raises:
      UserError: two of them have one name, or one would lie outside its folder.
    """
    files: list[Files] = []
    sources: dict[str, pathlib.Path] = {}
    for image in images:
        name = pathlib.Path(os.path.relpath(image, root)).with_suffix(".png")
        if ".." in name.parts:
            raise UserError(f"--images: {image} does not lie in {root}, where the pattern begins")
        # Many file systems do not tell names apart that differ in case alone.
        other = sources.setdefault(str(name).casefold(), image)
        if other != image:
            raise UserError(
                f"{other} and {image} would both be written to {name}, or to names that differ in "
                "case alone"
            )
        label, overlay = (output / kind / name for kind in _KINDS)
        files.append(Files(image, label, overlay))
    return files


def _check_results(
    results: Sequence[pathlib.Path], images: Sequence[pathlib.Path], *, overwrite: bool
) -> None:
    """Checks that results replace no image, and nothing else that they are not asked to.

    Raises:
      UserError: naming the first that would.
    """
    targets = set(results)
    for folder in sorted({folder for path in results for folder in path.parents}):
        if folder in targets or (os.path.lexists(folder) and not folder.is_dir()):
            raise UserError(f"{folder} is no folder, and results are to be written into it")
    # By what a path leads to, and by itself where it is a link: however it is spelled.
    kept = {_file(look(path)) for path in images for look in (os.stat, os.lstat)}
    there = [path for path in results if os.path.lexists(path)]
    for path in there:
        if _file(os.lstat(path)) in kept:
            raise UserError(
                f"{path} is one of the images, and a result would replace it; name another --output"
            )
        if path.is_dir():
            raise UserError(f"{path} is a folder, and a result is to be written there")
    if there and not overwrite:
        raise UserError(f"{there[0]} exists ({len(there)} such files); --overwrite replaces them")


def _file(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _entry(path: pathlib.Path) -> pathlib.Path:
    """The path, absolute and through no linked folder; the file itself may be a link."""
    return path.parent.resolve() / path.name


def _fixed_part(pattern: str) -> str:
    """The folder up to the first part that has a wildcard, or the folder of a single file."""
    folder = os.path.dirname(pattern)
    while glob.has_magic(folder):
        folder = os.path.dirname(folder)
    return folder or "."


def predict_files(
    network: TrainedNetwork,
    files: Sequence[Files],
    output: str,
    *,
    batch_size: int,
    pad_to: int = 1,
    values: Sequence[int] | None = None,
    opacity: float = 0.5,
) -> Timing:
    """Writes the label map and the overlay of every image, and a legend.

    Files appear whole or not at all. An image that turns out to be damaged is passed over, and
    named when all others are done.

    Args:
      network: the network, and what it is shown.
      files: from `find_images`.
      output: the folder of the legend.
      batch_size: images predicted at once, on all devices together.
      pad_to: as `kdjax.data.loading.sampling.batch_by_size` takes it.
      values: what stands for each class in the label maps; None for its number.
      opacity: of the colours over the image, 0 to 1.

    Raises:
      UserError: some images could not be read, or a file could not be written.
    """
    placement = Placement()
    devices = placement.mesh.size
    if batch_size % devices:
        raise UserError(
            f"--batch_size is {batch_size}; it must be a multiple of the {devices} devices"
        )
    # More would be blank rows in every batch.
    batch_size = min(batch_size, max(1, -(-len(files) // devices)) * devices)
    palette = np.array(network.info.palette, np.uint8)
    numbers = _numbers(len(palette), values)
    colors = full_palette(palette)
    colors[numbers] = palette
    started = time.perf_counter()
    sizes, damaged = _sizes(files)
    for index, size in sizes:
        try:
            network.predictor.inference.check_size(size)
        except UserError as error:
            raise UserError(f"{files[index].image}: {error}") from error
    batches = batch_by_size(
        sizes,
        batch_size,
        pad_to=pad_to,
        exact_below=network.predictor.inference.exact_below,
    )
    timing = Timing()
    timed = _Timed(network, placement, timing)

    def write(one: Files, image: np.ndarray, label: np.ndarray) -> None:
        write_atomically(one.label, label_png(numbers[label], colors))
        write_atomically(one.overlay, overlay_png(image, label, palette, opacity))

    try:
        legend = legend_png(network.info.class_names, palette)
        write_atomically(pathlib.Path(output) / LEGEND, legend)
        with ThreadPoolExecutor(_THREADS) as pool:
            writing: list[Future[None]] = []
            for batch, (images, extents, errors) in _read_ahead(pool, files, batches):
                damaged += errors
                labels = timed(images, extents)
                for written in writing:  # of the batch before, so that few wait in memory
                    written.result()
                writing = []
                for row in np.flatnonzero(extents.all(axis=1)):
                    height, width = extents[row]
                    pixels = images[row, :height, :width], labels[row, :height, :width]
                    writing.append(pool.submit(write, files[batch.indices[row]], *pixels))
            for written in writing:
                written.result()
    except OSError as error:
        raise UserError(f"cannot write to --output {output}: {why_unwritable(error)}") from error
    timing.seconds = time.perf_counter() - started
    if damaged:
        raise UserError(f"{len(damaged)} of {len(files)} images were left out: {damaged[0]}")
    return timing


def _sizes(
    files: Sequence[Files],
) -> tuple[list[tuple[int, tuple[int, int]]], list[UserError]]:
    """Index and size of every image that can be opened, and what is wrong with the others."""
    with ThreadPoolExecutor(_THREADS) as pool:
        opened = [pool.submit(upright_size, one.image) for one in files]
    errors = [reading.exception() for reading in opened]
    damaged = [error for error in errors if isinstance(error, UserError)]
    known = [index for index, error in enumerate(errors) if not isinstance(error, UserError)]
    return [(index, opened[index].result()) for index in known], damaged


def _numbers(num_classes: int, values: Sequence[int] | None) -> np.ndarray:
    """What stands for each class in a label map, uint8 [K]."""
    numbers = np.arange(num_classes) if values is None else np.array(values)
    if len(numbers) != num_classes:
        raise UserError(
            f"the network scores {num_classes} classes, the data set of --ids has {len(numbers)}"
        )
    if numbers.max() > 255:
        whose = "the network's classes go" if values is None else "the data set of --ids has ids"
        raise UserError(f"{whose} up to {numbers.max()}; label maps of 8 bits hold 0..255")
    return numbers.astype(np.uint8)


class _Timed:
    """A network on all devices, and the time that it takes."""

    def __init__(self, network: TrainedNetwork, placement: Placement, timing: Timing):
        self._predictor = network.predictor
        self._variables = placement.replicate(network.variables)
        self._placement = placement
        self._timing = timing

    def __call__(self, images: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Class numbers, uint8 [B, H, W], of padded images [B, H, W, 3] and their sizes [B, 2]."""
        begun, compiled = time.perf_counter(), len(self._predictor.shapes)
        arrays = self._placement.put_batch({"image": images, "size": sizes})
        found = self._predictor(self._variables, arrays["image"], arrays["size"])
        labels = np.asarray(found).astype(np.uint8)
        number = int(sizes.all(axis=1).sum())
        self._timing.images += number
        self._timing.shapes = len(self._predictor.shapes)
        if self._timing.shapes == compiled:
            self._timing.network_images += number
            self._timing.network_seconds += time.perf_counter() - begun
        return labels


def _read_ahead(
    pool: ThreadPoolExecutor, files: Sequence[Files], batches: Iterable[BatchIndices]
) -> Iterator[tuple[BatchIndices, DecodedBatch]]:
    """Reads the next batches while one is worked on."""
    waiting: collections.deque[tuple[BatchIndices, Future[DecodedBatch]]] = collections.deque()
    for batch in batches:
        waiting.append((batch, pool.submit(_read, files, batch)))
        if len(waiting) > _AHEAD:
            first, reading = waiting.popleft()
            yield first, reading.result()
    while waiting:
        first, reading = waiting.popleft()
        yield first, reading.result()


def _read(files: Sequence[Files], batch: BatchIndices) -> DecodedBatch:
    """Images [B, H, W, 3] of a batch, their sizes [B, 2] (0 where none is), what was damaged."""
    images = np.full((len(batch.indices), *batch.size, 3), IMAGE_PADDING, np.uint8)
    sizes, damaged = np.zeros((len(batch.indices), 2), np.int32), []
    for row, index in enumerate(batch.indices):
        if index < 0:
            continue
        try:
            photo = read_photo(files[index].image, upright=True)
        except UserError as error:
            damaged.append(error)
            continue
        height, width = photo.shape
        images[row, :height, :width] = np.asarray(photo.pixels)
        sizes[row] = height, width
    return images, sizes, damaged
