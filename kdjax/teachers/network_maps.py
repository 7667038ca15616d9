"""The maps of a teacher network, or of several, on the whole training images."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from kdjax.config import RunOptions
from kdjax.data.options import fitted_size
from kdjax.data.run_data import RunData
from kdjax.distillation.feature_maps import SCORES as CLASS_SCORES
from kdjax.distillation.feature_maps import array_of
from kdjax.evaluation.evaluator import SMALLEST, Predictor, TrainedNetwork
from kdjax.evaluation.inference import WHOLE, Inference, make_inference
from kdjax.models import Variables
from kdjax.models.layers import resize
from kdjax.models.network import SCORES, ReorderedClasses, maps_of
from kdjax.models.options import TeacherOptions
from kdjax.teachers.compression import Compression
from kdjax.training.sharding import Placement
from kdjax.utils.errors import UserError

# By name, the arrays of the compressed maps of an image.
ImageMaps = dict[str, dict[str, np.ndarray]]


class NetworkMaps:
    """The maps of a teacher network on the training images of all sets.

    An image is first fitted into `config.data.base_size`, to which the scales of crops refer. With
    several views or several networks, the class scores are the logarithm of the mean
    probabilities, at the size of the network's own scores.

    Args:
      options: the config of the run.
      images: the images of the run.
      teacher: the teacher, from `TrainedNetwork.frozen`.
      names: the maps that terms read.
      others: further networks whose probabilities are averaged with the teacher's.

    Raises:
      UserError: if several views or networks are asked for, and a term reads a map of features.

    Attributes:
      names: as given.
      description: identifies the teacher and its input in a cache.
    """

    def __init__(
        self,
        options: RunOptions,
        images: RunData,
        teacher: TrainedNetwork,
        names: Sequence[str] = (SCORES,),
        others: Sequence[TrainedNetwork] = (),
    ):
        self.names = tuple(names)
        self._options, self._images, self._teacher = options, images, teacher
        self._others = tuple(others)
        self._inference = views(options.teacher)
        self._averages = bool(others) or self._inference != WHOLE
        if features := [name for name in names if self._averages and name != SCORES]:
            raise UserError(
                f"config.teacher: scales, flip, window, and ensemble average class scores, but a "
                f'term reads "{features[0]}"; leave these options out, or use terms on "{SCORES}"'
            )
        inference = self._inference
        # None stands for what a cache of an older version does not name.
        self.description: dict[str, Any] = {
            "teacher": [_describe(network, options) for network in (teacher, *others)],
            "base_size": list(options.data.base_size) or None,
            "views": [list(inference.scales), inference.flip, inference.window]
            if self._averages
            else None,
        }

    def compressions(self) -> dict[str, Compression]:
        """Returns how the cache stores each map."""
        options = self._options.teacher
        shapes = self._shapes(self._options.data.crop_size)
        return {
            name: Compression(
                shapes[name][-1],
                name in CLASS_SCORES,
                options.cache_classes if name in CLASS_SCORES else 0,
                options.cache_features,
            )
            for name in self.names
        }

    def grids(self) -> dict[str, tuple[int, int]]:
        """Returns height and width of the maps of features on a crop, by name."""
        shapes = self._shapes(self._options.data.crop_size)
        grids = {name: shapes[name][1:3] for name in self.names if name != SCORES}
        return {name: (height, width) for name, (height, width) in grids.items()}

    def map_sizes(self) -> dict[str, np.ndarray]:
        """Returns height and width of every image's map, int32 `[N, 2]`, by name."""
        images = self._images.train_sizes()
        base = self._options.data.base_size
        shapes = {size: self._shapes(fitted_size(size, base)) for size in set(images)}
        return {
            name: np.array([shapes[size][name][1:3] for size in images], np.int32)
            for name in self.names
        }

    def maps(
        self, stored: Mapping[str, Compression], skip: np.ndarray
    ) -> Iterator[tuple[int, ImageMaps]]:
        """Yields the index and the compressed maps of every image once, in any order.

        Args:
          stored: the maps to make, and how each is stored.
          skip: True for the images that are left out, `[N]`.

        Raises:
          UserError: if a map holds values that are not finite.
        """
        options, devices = self._options, jax.local_devices()
        # Batches of the evaluation's size, on as many devices as divide it.
        count = math.gcd(options.data.eval_batch_size, len(devices))
        placement = Placement(devices=devices[:count])
        forward = self._averaged(placement) if self._averages else self._single(placement)
        compress = jax.jit(
            lambda maps: {name: form.compress(maps[name]) for name, form in stored.items()}
        )
        for batch in self._images.whole_train_images():
            rows = [row for row in np.flatnonzero(batch["valid"]) if not skip[batch["index"][row]]]
            if not rows:
                continue
            pixels = _fitted(placement.put_images(batch["image"]), tuple(options.data.base_size))
            found = jax.device_get(compress(forward(pixels)))
            for row in rows:
                maps = {
                    name: {key: value[row] for key, value in arrays.items()}
                    for name, arrays in found.items()
                }
                self._check_finite(maps, int(batch["index"][row]))
                yield int(batch["index"][row]), maps

    def _check_finite(self, maps: ImageMaps, index: int) -> None:
        # Sampling multiplies cells outside a crop by zero, and zero times infinity is NaN.
        for name, arrays in maps.items():
            if not all(np.isfinite(values).all() for values in arrays.values()):
                raise UserError(
                    f'{self._options.teacher.checkpoint}: its map "{name}" of the training image '
                    f"{self._images.train_names()[index]} holds values that are not finite; "
                    "config.teacher.cache needs finite values, such as -1e9 in place of -inf"
                )

    def _single(self, placement: Placement) -> Callable[[Array], dict[str, Array]]:
        # The run's own variables may be split over the devices of all processes.
        options = self._options.teacher
        variables = placement.replicate(_load(options.checkpoint, options).variables)
        return functools.partial(jax.jit(self._forward), variables)

    def _averaged(self, placement: Placement) -> Callable[[Array], dict[str, Array]]:
        """Returns a function to the logarithm of the mean probabilities of all views."""
        options = self._options.teacher
        members = [
            (
                Predictor(network.network, network.info.preprocessing, self._inference),
                placement.replicate(_load(path, options).variables),
            )
            for network, path in zip(
                (self._teacher, *self._others),
                (options.checkpoint, *options.ensemble),
                strict=True,
            )
        ]

        def forward(images: Array) -> dict[str, Array]:
            scores = [predictor.scores(variables, images) for predictor, variables in members]
            grid = self._shapes(images.shape[1:3])[SCORES][1:3]
            return {SCORES: _log_mean(scores, grid)}

        return forward

    def _forward(self, variables: Variables, pixels: Any) -> dict[str, Array]:
        teacher = self._teacher
        images = teacher.info.preprocessing(pixels)
        maps = maps_of(teacher.network.apply(variables, images, train=False, key=None)[0])
        return {name: array_of(maps[name]) for name in self.names}

    def _shapes(self, size: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Returns the shape of every map for one image, from tracing the network."""
        bands = self._images.bands
        pixels = jax.ShapeDtypeStruct((1, *size, bands.channels), bands.batch_dtype)
        maps = jax.eval_shape(self._forward, self._teacher.variables, pixels)
        return {name: value.shape for name, value in maps.items()}


@functools.partial(jax.jit, static_argnames="base_size")
def _fitted(pixels: Num[Array, "B H W C"], base_size: tuple[int, ...]) -> Num[Array, "B h w C"]:
    _, height, width, _ = pixels.shape
    size = fitted_size((height, width), base_size)
    return pixels if size == (height, width) else resize(pixels.astype(jnp.float32), size)


def _load(path: str, options: TeacherOptions) -> TrainedNetwork:
    loaded = TrainedNetwork.load(path, dtype=options.dtype, options=options.options)
    return loaded.frozen(options.dtype)


def views(options: TeacherOptions) -> Inference:
    """Returns the views of an image whose class scores the cache averages."""
    window = options.window or None
    mode = "slide" if window else "whole"
    return make_inference(mode, window, None, options.scales, options.flip, crop_size=None)


def _describe(network: TrainedNetwork, options: RunOptions) -> dict[str, Any]:
    info = network.info
    return {
        "network": f"{info.name} {info.fingerprint} in {options.teacher.dtype}",
        "preprocessing": [list(values) for values in info.preprocessing if values],
        "class_order": network.network.order
        if isinstance(network.network, ReorderedClasses)
        else None,
    }


@functools.partial(jax.jit, static_argnames="grid")
def _log_mean(
    scores: Sequence[Float[Array, "B H W K"]], grid: tuple[int, int]
) -> Float[Array, "B h w K"]:
    """Returns the logarithm of the mean probabilities of several scores, at another size."""
    mean = jnp.mean(jnp.stack([jax.nn.softmax(values) for values in scores]), axis=0)
    return jnp.log(jnp.maximum(resize(mean, grid), SMALLEST))
