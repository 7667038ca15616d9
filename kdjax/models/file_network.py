"""A network in an ONNX or TensorFlow Lite file, which a step calls on the host."""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from kdjax.models.file_reading import FileOptions, Reading, find_reading, round_up
from kdjax.models.layers import resize
from kdjax.models.model_files import (
    ModelFile,
    channels_last,
    digest,
    open_model_file,
    run_batch,
)
from kdjax.models.network import Applied, Images, Key, Variables
from kdjax.utils.errors import UserError, first_line

OVERLAP = 0.25  # least share of a tile that its neighbor covers too
EPSILON = 1e-6  # least probability


class FileNetwork:
    """A network in a file, as the two methods of `kdjax.models.Network`.

    The step calls the runtime of the file on the host. Batches are cut to the size that the file
    takes. The network has no variables and is not differentiable.

    Args:
      file: the file.
      reading: how the file is read.

    Attributes:
      preprocessing: turns pixels into the values of the input, red first.
      class_names: a name for each class.
      bands: the bands of the images.
    """

    def __init__(self, file: ModelFile, reading: Reading):
        self._file = file
        self._reading = reading
        self.preprocessing = reading.preprocessing
        self.class_names = reading.class_names
        self.bands = reading.bands
        self._output_shape = functools.cache(self._find_output_shape)

    def init(self, key: PRNGKeyArray, images: Images) -> Variables:
        """Returns no variables: the file holds the weights."""
        del key, images
        return {"params": {}, "state": {}}

    def apply(self, variables: Variables, images: Images, *, train: bool, key: Key) -> Applied:
        """Returns the class scores, and the variables.

        The scores have the stride of the file's output. Those of tiled images have the size of the
        images.

        Raises:
          UserError: if the file fails on images of this size.
        """
        del train, key
        return self._scores(jnp.asarray(images, jnp.float32)), variables

    def _scores(self, images: Float[Array, "B H W C"]) -> Float[Array, "B h w K"]:
        reading, size = self._reading, images.shape[1:3]
        if reading.fit == "tile":
            return self._tiled(images)
        taken = reading.size or tuple(round_up(side, reading.multiple) for side in size)
        if reading.fit == "resize":
            if size == taken:
                return self._call(images)
            shape = (images.shape[0], *taken, images.shape[-1])
            scores = self._call(jax.image.resize(images, shape, "linear", antialias=True))
            # Terms expect maps of one stride, whatever the size of the images.
            stride = max(1, round(taken[0] / scores.shape[1]))
            return resize(scores, (-(-size[0] // stride), -(-size[1] // stride)))
        below, right = (inner - side for inner, side in zip(taken, size, strict=True))
        padded = jnp.pad(images, ((0, 0), (0, below), (0, right), (0, 0)), mode="edge")
        return _without_padding(self._call(padded), size, taken)

    def _tiled(self, images: Float[Array, "B H W C"]) -> Float[Array, "B H W K"]:
        """Returns the mean scores of overlapping tiles."""
        assert self._reading.size
        height, width = self._reading.size
        batch, *size, _ = images.shape
        below, right = max(height - size[0], 0), max(width - size[1], 0)
        images = jnp.pad(images, ((0, 0), (0, below), (0, right), (0, 0)), mode="edge")
        corners = [
            (top, left)
            for top in _tile_starts(images.shape[1], height)
            for left in _tile_starts(images.shape[2], width)
        ]
        tiles = [images[:, top : top + height, left : left + width] for top, left in corners]
        scores = resize(self._call(jnp.concatenate(tiles)), (height, width))
        total = jnp.zeros((*images.shape[:3], scores.shape[-1]))
        count = np.zeros((*images.shape[1:3], 1), np.float32)
        for index, (top, left) in enumerate(corners):
            area = np.s_[top : top + height, left : left + width]
            total = total.at[:, *area].add(scores[index * batch : (index + 1) * batch])
            count[area] += 1
        return (total / count)[:, : size[0], : size[1]]

    def _call(self, images: Float[Array, "B H W C"]) -> Float[Array, "B h w K"]:
        """Returns the class scores of images that have a size of the file."""
        batch, height, width, _ = images.shape
        shape = jax.ShapeDtypeStruct((batch, *self._output_shape(height, width)), jnp.float32)
        values = jax.pure_callback(self._run, shape, images, vmap_method="sequential")
        return scores_from(values, self._reading.kind, self._least_probability())

    def _least_probability(self) -> float:
        """Returns half a step of a quantized output, which rounds smaller probabilities to 0."""
        output = self._file.outputs[self._reading.output]
        return max(EPSILON, output.scale / 2) if output.quantized else EPSILON

    def _find_output_shape(self, height: int, width: int) -> tuple[int, ...]:
        blank = np.zeros((1, height, width, len(self.preprocessing.mean)), np.float32)
        try:
            return self._run(blank).shape[1:]
        # Each runtime has its own errors.
        except Exception as error:
            raise UserError(
                f"the file fails on images of {height} x {width}: {first_line(error)}; options.fit "
                "and options.multiple change the size of images"
            ) from error

    def _run(self, images: Any) -> np.ndarray:
        """Returns the values [B, h, w, C] of the output, from images in RGB [B, H, W, 3]."""
        images = np.asarray(images)
        found = run_batch(self._file, images, self._reading.layout, self._reading.channels)
        output = self._file.outputs[self._reading.output]
        return channels_last(
            output.decode(found[self._reading.output]), self._reading.output_layout
        )


def scores_from(
    values: Float[Array, "B h w C"], kind: str, least: float = EPSILON
) -> Float[Array, "B h w K"]:
    """Converts the values of an output to class scores, whose softmax is the probabilities.

    An output of one class becomes two scores, of the background and of the class: minus and plus
    half its log-odds. The scores depend on the place for both classes, so that losses that compare
    maps of one class with each other learn from both.

    Args:
      values: the values.
      kind: "logits", "probabilities", or "sigmoid".
      least: smaller probabilities are raised to this one, because their logarithm has no limit.
    """
    single = values.shape[-1] == 1
    if kind != "logits":
        values = jnp.clip(values, least, 1 - least if single else 1)
        values = jnp.log(values) - jnp.log1p(-values) if single else jnp.log(values)
    return jnp.concatenate([-values / 2, values / 2], axis=-1) if single else values


def _without_padding(
    scores: Float[Array, "B h w K"], size: tuple[int, ...], padded: tuple[int, ...]
) -> Float[Array, "B h w K"]:
    """Removes the part of the scores that belongs to the padding below and on the right."""
    if size == padded:
        return scores
    cells = scores.shape[1:3]
    if any(side * cell % inner for side, cell, inner in zip(size, cells, padded, strict=True)):
        # The image ends within a cell.
        scores, cells = resize(scores, padded), padded
    height, width = (
        side * cell // inner for side, cell, inner in zip(size, cells, padded, strict=True)
    )
    return scores[:, :height, :width]


def _tile_starts(length: int, tile: int) -> list[int]:
    """Returns evenly spread starts of tiles that cover a side and overlap by `OVERLAP` or more."""
    count = 1 + int(np.ceil((length - tile) / (tile * (1 - OVERLAP)))) if length > tile else 1
    return np.round(np.linspace(0, length - tile, count)).astype(int).tolist()


def load_file_network(
    path: str | os.PathLike[str], options: Mapping[str, Any]
) -> tuple[FileNetwork, str]:
    """Loads the network in a model file, and logs once how the file is read.

    Args:
      path: an ONNX or TensorFlow Lite file.
      options: see `FileOptions`.

    Returns:
      The network, and a fingerprint of the file and of the way it is read.

    Raises:
      UserError: if the file cannot be loaded, if an option is wrong, or if the file takes no images
        or returns no class scores.
    """
    read = FileOptions.read(options, os.fspath(path))
    return _load(os.fspath(path), digest(path), read)


@functools.lru_cache(maxsize=8)
def _load(path: str, content: str, options: FileOptions) -> tuple[FileNetwork, str]:
    file = open_model_file(path)
    reading = find_reading(file, path, options)
    described = json.dumps([content, dataclasses.asdict(reading)])
    return FileNetwork(file, reading), hashlib.sha256(described.encode()).hexdigest()[:16]
