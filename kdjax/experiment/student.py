"""Makes the student of a run: fresh, on a trained backbone, or from a checkpoint."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from kdjax.config import RunOptions
from kdjax.interop import imagenet
from kdjax.models import Network, NNXNetwork, Variables, serialization
from kdjax.models.model_files import is_model_file
from kdjax.models.network import (
    arrays_by_path,
    is_random_key,
    preprocessing_of,
    scored_classes,
    trace_maps,
)
from kdjax.models.options import IMAGENET_WEIGHTS, StudentOptions
from kdjax.models.outputs import IMAGENET, Preprocessing
from kdjax.models.serialization import NetworkInfo
from kdjax.utils.bands import RGB, Bands
from kdjax.utils.classes import class_order, differing_class
from kdjax.utils.errors import UserError

BACKBONE = "backbone"


def make_student(
    options: RunOptions,
    class_names: Sequence[str],
    palette: UInt8[np.ndarray, "K 3"],
    bands: Bands = RGB,
) -> tuple[Network, Variables, NetworkInfo]:
    """Returns the student of a config, its initial variables, and its description.

    Args:
      options: the options of the run.
      class_names: the names of the data's classes. A student without class scores has none.
      palette: a color for each class.
      bands: the bands of the images. If they are not those of photos, they are normalized by their
        own statistics, and weights for photos are spread over them.

    Raises:
      UserError: if the network cannot be made, if it has class scores and the data have no classes,
        or if its initial checkpoint is missing, damaged, or of another network.
    """
    student = options.student
    info = NetworkInfo(
        name=student.name,
        num_classes=max(1, len(class_names)),
        width=student.width,
        auxiliary=student.auxiliary,
        class_names=tuple(class_names),
        palette=tuple(tuple(int(value) for value in color) for color in palette),
        options=dict(student.options),
        image_size=options.data.crop_size,
        source=f"trained by kdjax from seed {options.seed}",
        bands=bands,
    )
    if bands != RGB:
        info = dataclasses.replace(info, preprocessing=Preprocessing(bands.mean, bands.std))
    for key in ("checkpoint", "backbone"):
        if is_model_file(path := getattr(student, key)):
            raise UserError(
                f"config.student.{key} is {path}: a model file cannot be trained, and can only be "
                "config.teacher.checkpoint"
            )
    if student.checkpoint:
        network, variables, start = serialization.load(
            student.checkpoint, dtype=student.dtype, seed=options.seed
        )
        _check_bands(student.checkpoint, start, info)
        info = _with_classes_of(network, variables, info)
        _check_start(student, info, start, variables)
        return network, variables, _started_from(info, start, student.checkpoint)
    network = info.make(dtype=student.dtype, where="config.student")
    variables = network.init(jax.random.key(options.seed), info.blank_image())
    info = _with_classes_of(network, variables, info)
    if bands == RGB:
        info = dataclasses.replace(info, preprocessing=preprocessing_of(network))
    if student.backbone == IMAGENET_WEIGHTS:
        return network, *_take_imagenet(student, network, variables, info)
    if student.backbone:
        return network, *_take_backbone(student.backbone, variables, info, options.seed)
    return network, variables, info


def _with_classes_of(network: Network, variables: Variables, info: NetworkInfo) -> NetworkInfo:
    """Returns the description without classes if the network has no class scores."""
    name = f"config.student {info.name}"
    maps = trace_maps(
        network, variables, info.image_size, train=False, channels=info.in_channels, name=name
    )
    if not scored_classes(maps):
        return dataclasses.replace(info, num_classes=0, class_names=(), palette=())
    if not info.class_names:
        raise UserError(
            f"{name} scores classes, and nothing teaches them: the images have no labels, and the "
            "teacher has no class scores. Train a backbone alone, such as r18"
        )
    return info


def _check_start(
    student: StudentOptions, info: NetworkInfo, start: NetworkInfo, variables: Variables
) -> None:
    """Checks that a checkpoint has the network and the classes of the run."""
    for key in ("name", "num_classes", "width", "auxiliary", "options"):
        wanted, found = getattr(info, key), getattr(start, key)
        if wanted != found and not (key == "auxiliary" and _same_arrays(student, info, variables)):
            raise UserError(
                f"config.student.checkpoint {student.checkpoint} has {key} {found!r}; this run "
                f"needs {wanted!r}"
            )
    if student.any_class_names:
        return
    try:
        difference = class_order(start.class_names, info.class_names) and differing_class(
            info.class_names, start.class_names
        )
    except ValueError as error:
        difference = str(error)
    if difference:
        raise UserError(
            f"config.student.checkpoint {student.checkpoint} scores other classes than the data, "
            f"or the same in another order ({difference}); name it in config.student.backbone to "
            "take its backbone alone, or set config.student.any_class_names to True to take its "
            "classes by their numbers, whatever their names"
        )


def _same_arrays(student: StudentOptions, info: NetworkInfo, variables: Variables) -> bool:
    """Returns whether a network has the same arrays as the one that `info` describes."""
    network = info.make(dtype=student.dtype, where="config.student")
    abstract = jax.eval_shape(network.init, jax.random.key(0), info.blank_image())
    return _shapes(abstract) == _shapes(variables)


def _take_backbone(
    path: str, variables: Variables, info: NetworkInfo, seed: int
) -> tuple[Variables, NetworkInfo]:
    """Returns the variables with the backbone of the network in `path`, and the new description.

    Classes, head, and the number of channels behind the backbone may differ. A checkpoint holds no
    random keys, so those of the backbone's modules come from `seed`.
    """
    _, source, start = serialization.load(path, seed=seed)
    taken = {}
    for kind, tree in variables.items():
        fresh, trained = tree.get(BACKBONE, {}), source[kind].get(BACKBONE, {})
        trained = _spread(fresh, trained, info.bands)
        if _shapes(fresh) != _shapes(trained) or (kind == "params" and not fresh):
            raise UserError(
                f"config.student.backbone {path} is that of {start.name} (width {start.width}); "
                f"{info.name} (width {info.width}) has another"
            )
        taken[kind] = {**tree, **({BACKBONE: trained} if trained else {})}
    return taken, _started_from(info, start, path, "its backbone ")


def _check_bands(path: str, start: NetworkInfo, info: NetworkInfo) -> None:
    if start.in_channels != info.in_channels:
        raise UserError(
            f"config.student.checkpoint {path} takes images of {start.in_channels} bands; these "
            f"have {info.in_channels}: name it in config.student.backbone, whose first layer is "
            "spread over the bands"
        )


def _spread(fresh: Any, trained: Any, bands: Bands) -> Any:
    """Returns the weights of a backbone for photos, with a first layer for other bands.

    The bands of `bands.rgb` take the weights of red, green, and blue, and all others their mean.
    The sum over a pixel keeps its size: all weights are multiplied by 3 / C.
    """
    if bands.channels == 3 or jax.tree.structure(fresh) != jax.tree.structure(trained):
        return trained

    def fitted(new: Any, old: Any) -> Any:
        # Kernels are [height, width, channels, filters].
        wanted = (*old.shape[:2], bands.channels, *old.shape[3:])
        if is_random_key(old) or old.shape[2:3] != (3,) or new.shape != wanted:
            return old
        old = np.asarray(old)
        kernel = np.repeat(old.mean(axis=2, keepdims=True), bands.channels, axis=2)
        for band in set(bands.rgb):
            colors = [color for color, chosen in enumerate(bands.rgb) if chosen == band]
            kernel[:, :, band] = old[:, :, colors].mean(axis=2)
        return jnp.asarray(kernel * (3 / bands.channels))

    return jax.tree.map(fitted, fresh, trained)


def _started_from(info: NetworkInfo, start: NetworkInfo, path: str, how: str = "") -> NetworkInfo:
    return dataclasses.replace(
        info,
        preprocessing=start.preprocessing if info.bands == RGB else info.preprocessing,
        source=f"{info.source}, {how}from {path} ({start.fingerprint})",
        initial_weights={"path": path, "fingerprint": start.fingerprint},
    )


def _take_imagenet(
    options: StudentOptions, network: Network, variables: Variables, info: NetworkInfo
) -> tuple[Variables, NetworkInfo]:
    """Returns the variables with the published weights of the backbone, and the description."""
    found = imagenet.find(options, "config.student")
    target, start = network, variables
    # The file is for photos, so a network of three channels takes it first.
    photos = dataclasses.replace(info, preprocessing=IMAGENET)
    if info.in_channels != photos.in_channels:
        target = photos.make(dtype=options.dtype, where="config.student")
        start = target.init(jax.random.key(0), photos.blank_image())
    assert isinstance(target, NNXNetwork)  # as every network with published weights is
    loaded, preprocessing = found.load(target, start)
    taken = {
        kind: {**tree, BACKBONE: _spread(tree[BACKBONE], loaded[kind][BACKBONE], info.bands)}
        if BACKBONE in tree
        else tree
        for kind, tree in variables.items()
    }
    return taken, dataclasses.replace(
        info,
        preprocessing=preprocessing if info.bands == RGB else info.preprocessing,
        source=f"{info.source}, its backbone from {found.path.name} (SHA-256 {found.sha256})",
        initial_weights={"file": found.path.name, "sha256": found.sha256},
    )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    arrays = arrays_by_path(tree)
    return {path: leaf.shape for path, leaf in arrays.items() if not is_random_key(leaf)}
