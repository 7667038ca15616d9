"""The teacher of a run: its network, or its scores in files."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from kdjax.config import RunOptions
from kdjax.data.interface import SegmentationSet
from kdjax.data.run_data import ClassTable, RunData
from kdjax.distillation import Spec, need_teacher
from kdjax.evaluation.evaluator import TrainedNetwork
from kdjax.evaluation.inference import WHOLE
from kdjax.models import Network, Variables
from kdjax.models.model_files import is_model_file
from kdjax.models.options import TeacherOptions
from kdjax.models.serialization import NetworkInfo
from kdjax.models.several import SeveralNetworks
from kdjax.teachers.network_maps import NetworkMaps, views
from kdjax.teachers.precomputed_logits import PrecomputedLogits
from kdjax.training.sharding import Placement
from kdjax.utils.bands import Bands
from kdjax.utils.errors import UserError, WrongValue
from kdjax.utils.log import RunLogger


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A teacher as a network, or as scores that it left in files.

    Attributes:
      source: the path of the checkpoint or of the files.
      fingerprint: identifies the weights or the files.
      network: the network, on the devices. None for files.
      cached: the maps that the cache is made from. None if every step runs the network.
      maps: the network and its variables, or the maps of the files, as
        `kdjax.experiment.build.build_distiller` takes them.
    """

    source: str
    fingerprint: str
    network: TrainedNetwork | None
    cached: NetworkMaps | PrecomputedLogits | None
    maps: tuple[Network, Variables] | Mapping[str, Spec]

    @property
    def in_step(self) -> TrainedNetwork | None:
        """The network, if every step runs it."""
        return None if self.cached else self.network


def open_images(
    options: RunOptions, data: SegmentationSet | None = None, *, where: str = "config.data"
) -> RunData:
    """Opens the data set of a run. Images without labels get the classes of the teacher.

    Args:
      options: the options of the run.
      data: the data set if it is an object.
      where: where the options come from, for messages.

    Raises:
      UserError: see `RunData`; and if a run without labels would learn from labels, or has no
        teacher to be compared with.
    """
    named = bool(options.teacher.checkpoint) and need_teacher(options.terms)
    images = RunData(
        options.data,
        data,
        where=where,
        classes=functools.partial(_classes_of, options.teacher) if named else None,
    )
    if images.labeled:
        return images
    for key in ("cross_entropy", "auxiliary", "dice", "lovasz"):
        if weight := getattr(options.loss, key):
            raise UserError(
                f"config.loss.{key} is {weight}, but the images of {where} have no labels; set it "
                "to 0, so that the student learns from the teacher alone"
            )
    return images


def _classes_of(options: TeacherOptions) -> ClassTable:
    loaded = TrainedNetwork.load(options.checkpoint, dtype=options.dtype, options=options.options)
    info = loaded.info
    return info.class_names, np.array(info.palette, np.uint8)


def load_teacher(
    options: RunOptions, images: RunData, placement: Placement, log: RunLogger
) -> Teacher | None:
    """Loads the teacher and puts its variables on the devices; returns None if no term needs it.

    Raises:
      UserError: if the config names no teacher, the checkpoint holds another network, or the files
        do not match the images.
    """
    wanted = options.teacher
    if not need_teacher(options.terms):
        return None
    if wanted.logits:
        files = PrecomputedLogits(wanted.logits, images, wanted.cache_classes)
        return Teacher(wanted.logits, files.fingerprint, None, files, files.specs)
    if not wanted.checkpoint:
        raise UserError(
            "config.terms need a teacher: set config.teacher.checkpoint to a network checkpoint, "
            'the workdir of a finished run, "package.module:attribute" of a trained network, or an '
            "ONNX or TensorFlow Lite file; or "
            "config.teacher.logits to the scores of a teacher that ran elsewhere"
        )
    network = TrainedNetwork.load(wanted.checkpoint, dtype=wanted.dtype, options=wanted.options)
    _check_described(wanted, network.info)
    network = reading_bands(network, wanted, images.bands, wanted.checkpoint)
    if wanted.min_miou and not comparable(network, images):
        raise UserError(
            f"config.teacher.min_miou is {wanted.min_miou}, but {wanted.checkpoint} scores "
            f"{network.info.num_classes} classes and the data have {images.num_classes}, so that "
            "its mIoU is not known; set min_miou to 0"
        )
    network = ordered_teacher(network.frozen(wanted.dtype), wanted, images.class_names, log)
    network = dataclasses.replace(network, variables=placement.put_state(network.variables))
    return Teacher(
        wanted.checkpoint,
        network.info.fingerprint,
        network,
        _maps_to_cache(options, images, network, log),
        (network.network, network.variables),
    )


def _maps_to_cache(
    options: RunOptions, images: RunData, teacher: TrainedNetwork, log: RunLogger
) -> NetworkMaps | None:
    """Returns the maps that the cache holds; None if every step runs the teacher.

    Raises:
      UserError: if the teacher is to average several views or networks in every step.
    """
    wanted = options.teacher
    if not wanted.cache:
        if wanted.ensemble or views(wanted) != WHOLE:
            raise UserError(
                "config.teacher.scales, flip, window, and ensemble make the teacher's scores "
                "expensive, so that they are made once: name a directory for them in "
                "config.teacher.cache"
            )
        return None
    others = [
        reading_bands(
            TrainedNetwork.load(path, dtype=wanted.dtype, options=wanted.options),
            wanted,
            images.bands,
            path,
        )
        .frozen(wanted.dtype)
        .in_order_of(
            images.class_names,
            where=f"config.teacher.ensemble {path}",
            accept="config.teacher.any_class_names",
            any_names=wanted.any_class_names,
            log=log.info,
        )
        for path in wanted.ensemble
    ]
    for path, other in zip(wanted.ensemble, others, strict=True):
        if other.info.num_classes != teacher.info.num_classes:
            raise UserError(
                f"config.teacher.ensemble {path} scores {other.info.num_classes} classes; "
                f"config.teacher.checkpoint scores {teacher.info.num_classes}"
            )
    names = {name for loss in options.terms.values() for name in loss.names("teacher")}
    return NetworkMaps(options, images, teacher, sorted(names), others)


def reading_bands(
    teacher: TrainedNetwork, options: TeacherOptions, bands: Bands, path: str
) -> TrainedNetwork:
    """Returns the teacher with the bands that it reads of the images.

    Args:
      teacher: the teacher.
      options: the config section.
      bands: the bands of the images.
      path: the teacher's, for messages.

    Raises:
      UserError: if the images lack a band, the teacher takes another number of bands, or it was
        trained on numbers of another type.
    """
    info, chosen = teacher.info, options.bands
    if chosen and max(chosen) >= bands.channels:
        raise WrongValue(
            "config.teacher.bands",
            f"is {chosen}; the images have the bands 0..{bands.channels - 1}",
        )
    found = len(chosen) or bands.channels
    # Several networks select bands themselves.
    if info.in_channels != found and not isinstance(teacher.network, SeveralNetworks):
        raise UserError(
            f"{path} takes {info.in_channels} channels, and gets {found} bands; name those of the "
            "images that the teacher reads, in its order, in config.teacher.bands"
        )
    if info.bands.dtype != bands.dtype and not is_model_file(path):
        raise UserError(
            f"{path} was trained on {info.bands.dtype}, and the images are {bands.dtype}; it needs "
            "images of the same numbers"
        )
    if not chosen:
        return teacher
    preprocessing = info.preprocessing._replace(bands=tuple(chosen))
    changed = dataclasses.replace(info, preprocessing=preprocessing)
    return teacher.running(teacher.network, teacher.variables, changed)


def ordered_teacher(
    teacher: TrainedNetwork,
    options: TeacherOptions,
    class_names: Sequence[str],
    log: RunLogger | None = None,
) -> TrainedNetwork:
    """Returns the teacher with its class scores in the order of the data's classes.

    Raises:
      UserError: see `TrainedNetwork.in_order_of`.
    """
    return teacher.in_order_of(
        class_names,
        where=f"config.teacher.checkpoint {options.checkpoint}",
        accept="config.teacher.any_class_names",
        any_names=options.any_class_names,
        log=log and log.info,
    )


def _check_described(wanted: TeacherOptions, info: NetworkInfo) -> None:
    """Requires that a checkpoint holds the teacher that the config describes.

    An empty `config.teacher.name` describes no network, so only its options are compared.
    """
    described = ("name", "width", "options") if wanted.name else ("options",)
    for key in described:
        expected, found = getattr(wanted, key), getattr(info, key)
        if expected != found and (wanted.name or expected):
            raise UserError(
                f"config.teacher.{key} is {expected!r}, but {wanted.checkpoint} holds {found!r}"
            )


def comparable(teacher: TrainedNetwork | None, images: RunData) -> TrainedNetwork | None:
    """Returns the teacher if it predicts as many classes as the data have, else None."""
    if teacher is None or not teacher.info.num_classes:
        return None
    return teacher if teacher.info.num_classes == images.num_classes else None
