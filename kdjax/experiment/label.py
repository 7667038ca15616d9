"""`kdjax.label`: a teacher's class scores and label images for a folder of photos."""

import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kdjax.data.loading.sampling import BatchIndices, batch_by_size
from kdjax.evaluation.evaluator import TrainedNetwork
from kdjax.evaluation.predict_files import find_photos, image_sizes, npy, read_ahead
from kdjax.models import Variables
from kdjax.models.layers import resize
from kdjax.models.network import scores_of
from kdjax.reporting.pictures import full_palette, label_png, overlay_png
from kdjax.training.sharding import Placement
from kdjax.utils import schema
from kdjax.utils.classes import IGNORE_LABEL
from kdjax.utils.errors import UserError
from kdjax.utils.files import is_remote, read_json, why_unwritable, write_atomically
from kdjax.utils.log import logger

_DESCRIPTION = "label.json"
_CLASSES = "classes.txt"
_THREADS = 4
_OPACITY = 0.5
_PROGRESS_LINES = 10


class Labeled(NamedTuple):
    """The result of `label`.

    Attributes:
      images: the number of images.
      new: the number of images that this call labeled; the others were labeled before.
      scores: the folder of the class scores, for `config.teacher.logits`.
    """

    images: int
    new: int
    scores: pathlib.Path


class _Photo(NamedTuple):
    """An image, and its path below the folder of all images, without the suffix."""

    path: pathlib.Path
    name: str


def label(
    teacher: str,
    images: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    masks: bool = False,
    min_confidence: float = 0.0,
    overlays: int = 0,
    batch_size: int | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Labeled:
    """Writes a teacher's class scores for every image of a folder.

        kdjax.label("teacher.onnx", "photos", "labeled", masks=True, overlays=4)

    `scores/NAME.npy` are logits, float16 [h, w, K], at the size of the teacher's own scores, for
    `config.teacher.logits`. With `masks`, the output is also a source for `kdjax prepare folder`:
    `labels/NAME.png` (class ids), `classes.txt`, and a link `images` to the photos. The same call
    continues an interrupted one.

    Args:
      teacher: a network checkpoint, the workdir of a run, "package.module:attribute", or an ONNX or
        TensorFlow Lite file.
      images: a folder; images may lie in folders inside it.
      output: the folder to write to.
      masks: True to write label images.
      min_confidence: the least probability of a labeled pixel; other pixels get 255.
      overlays: the number of images, evenly spread, whose labels are drawn over them.
      batch_size: images at once; None for one per device.
      options: how to read a model file, as `config.teacher.options` takes them.

    Raises:
      UserError: if there is no teacher or no image, an image is damaged, the output holds something
        else, such as the labels of another teacher, or `batch_size` is not a multiple of the
        devices.
    """
    schema.check_number("min_confidence", min_confidence, schema.SHARE)
    schema.check_number("overlays", overlays, schema.COUNT_OR_ZERO)
    if batch_size is not None:
        schema.check_number("batch_size", batch_size, schema.COUNT)
        Placement().check_images_at_once(batch_size)
    if is_remote(output):
        raise UserError(f"--output is {os.fspath(output)}; it must be a local folder")
    folder, root = pathlib.Path(output), pathlib.Path(images)
    network = TrainedNetwork.load(teacher, options=options)
    network.info.require_scores(f"--teacher {teacher}")
    photos = [_Photo(path, name) for name, path in find_photos(root, network.info.bands).items()]
    drawn = _evenly_spread(photos, overlays)
    _claim(folder, network, root, masks=masks, min_confidence=min_confidence)
    waiting = [photo for photo in photos if not _is_done(folder, photo, masks, photo in drawn)]
    if len(waiting) < len(photos):
        logger.info(f"label: {len(photos) - len(waiting)} of {len(photos)} images are done")
    reported = {len(waiting) * part // _PROGRESS_LINES for part in range(1, _PROGRESS_LINES + 1)}
    try:
        for number, (photo, pixels, found) in enumerate(
            _predictions(network, waiting, min_confidence, batch_size), 1
        ):
            # The scores last: an image with scores is done.
            if masks:
                write_atomically(folder / "labels" / f"{photo.name}.png", _mask(network, found))
            if photo in drawn:
                path = folder / "overlays" / f"{photo.name}.png"
                write_atomically(path, _overlay(network, pixels, found["labels"]))
            write_atomically(folder / "scores" / f"{photo.name}.npy", npy(found["scores"]))
            if number in reported:
                logger.info(f"label: {number} of {len(waiting)} images")
    except OSError as error:
        raise UserError(f"cannot write to --output {folder}: {why_unwritable(error)}") from error
    return Labeled(len(photos), len(waiting), folder / "scores")


def _evenly_spread(photos: Sequence[_Photo], count: int) -> set[_Photo]:
    last = len(photos) - 1
    return {photos[index] for index in np.linspace(0, last, count).round().astype(int)}


def _claim(
    folder: pathlib.Path,
    network: TrainedNetwork,
    images: pathlib.Path,
    *,
    masks: bool,
    min_confidence: float,
) -> None:
    """Writes the description of the output, or checks that the output is of the same call.

    Raises:
      UserError: if the folder holds something else.
    """
    info, path = network.info, folder / _DESCRIPTION
    wanted = {
        "teacher": info.name,
        "fingerprint": info.fingerprint,
        "images": str(images.resolve()),
        "class_names": list(info.class_names),
        "masks": masks,
        "min_confidence": min_confidence,
    }
    if path.exists():
        found = read_json(path)
        for key, value in wanted.items():
            if found.get(key) != value:
                raise UserError(
                    f"--output {folder} holds the labels of another call ({key} {found.get(key)} "
                    f"there, {value} now); name another folder"
                )
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--output {folder} holds other files; name a new folder")
    names = "".join(f"{name}\n" for name in info.class_names)
    try:
        write_atomically(folder / "scores" / _CLASSES, names)
        if masks:
            write_atomically(folder / _CLASSES, names)
            (folder / "images").symlink_to(images.resolve(), target_is_directory=True)
        write_atomically(path, json.dumps(wanted, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot write to --output {folder}: {why_unwritable(error)}") from error


def _is_done(folder: pathlib.Path, photo: _Photo, masks: bool, drawn: bool) -> bool:
    paths = [folder / "scores" / f"{photo.name}.npy"]
    paths += [folder / "labels" / f"{photo.name}.png"] if masks else []
    paths += [folder / "overlays" / f"{photo.name}.png"] if drawn else []
    return all(path.exists() for path in paths)


def _predictions(
    network: TrainedNetwork,
    photos: Sequence[_Photo],
    min_confidence: float,
    batch_size: int | None,
) -> Iterator[tuple[_Photo, np.ndarray, Mapping[str, np.ndarray]]]:
    """Yields each photo, its pixels, and its scores and labels.

    Raises:
      UserError: if a photo is damaged.
    """
    placement = Placement()
    variables = placement.replicate(network.variables)

    @jax.jit
    def predict(variables: Variables, pixels: Array) -> dict[str, Array]:
        seen = network.info.preprocessing(pixels)
        output, _ = network.network.apply(variables, seen, train=False, key=None)
        scores = scores_of(output).astype(jnp.float32)
        probabilities = jax.nn.softmax(resize(scores, pixels.shape[1:3]))
        labels = jnp.argmax(probabilities, -1).astype(jnp.uint8)
        unsure = probabilities.max(-1) < min_confidence
        return {
            "scores": scores.astype(jnp.float16),
            "labels": jnp.where(unsure, IGNORE_LABEL, labels).astype(jnp.uint8),
        }

    paths = [photo.path for photo in photos]
    bands = network.info.bands
    sizes, damaged = image_sizes(paths, bands)
    devices = placement.mesh.size
    batches = batch_by_size(sizes, batch_size or devices)
    with ThreadPoolExecutor(_THREADS) as pool:
        for batch, (pixels, _, errors) in read_ahead(pool, paths, batches, bands):
            if damaged := [*damaged, *errors]:
                raise damaged[0]
            found = jax.device_get(predict(variables, placement.put_images(pixels)))
            yield from _rows(photos, batch, pixels, found)


def _rows(
    photos: Sequence[_Photo],
    batch: BatchIndices,
    pixels: np.ndarray,
    found: Mapping[str, np.ndarray],
) -> Iterator[tuple[_Photo, np.ndarray, dict[str, np.ndarray]]]:
    for row, index in enumerate(batch.indices):
        if index >= 0:
            yield photos[index], pixels[row], {key: value[row] for key, value in found.items()}


def _palette(network: TrainedNetwork) -> Any:
    return np.array(network.info.palette, np.uint8)


def _mask(network: TrainedNetwork, found: Mapping[str, np.ndarray]) -> bytes:
    return label_png(found["labels"], full_palette(_palette(network)))


def _overlay(network: TrainedNetwork, pixels: np.ndarray, labels: np.ndarray) -> bytes:
    picture = network.info.bands.picture(pixels)
    return overlay_png(picture, labels, _palette(network), _OPACITY)
