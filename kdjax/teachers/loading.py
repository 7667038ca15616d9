"""The teacher of a run: its network, or the scores that it left in files."""

import dataclasses
from collections.abc import Sequence

from kdjax.config import RunOptions
from kdjax.data.images import Images
from kdjax.distillation import need_teacher
from kdjax.evaluation.evaluator import TrainedNetwork
from kdjax.models.options import TeacherOptions
from kdjax.models.serialization import NetworkInfo
from kdjax.teachers.precomputed_logits import PrecomputedLogits
from kdjax.training.sharding import Placement
from kdjax.utils.errors import UserError
from kdjax.utils.log import RunLogger


def precomputed_logits(options: RunOptions, images: Images) -> PrecomputedLogits | None:
    """Returns the scores of `config.teacher.logits`, or None if no term needs scores from files.

    Raises:
      UserError: if the files do not match the images.
    """
    if not options.teacher.logits or not need_teacher(options.terms):
        return None
    return PrecomputedLogits(options.teacher.logits, images, options.data.train_split)


def load_teacher(
    options: RunOptions, images: Images, placement: Placement, log: RunLogger
) -> TrainedNetwork | None:
    """Loads the teacher and puts its variables on the devices; returns None if no term needs it.

    Raises:
      UserError: if the config names no teacher, or the checkpoint holds a different network.
    """
    if not need_teacher(options.terms):
        return None
    if not options.teacher.checkpoint:
        raise UserError(
            "config.terms need a teacher: set config.teacher.checkpoint to a network checkpoint, "
            'the workdir of a finished run, or "package.module:attribute" of a trained network; or '
            "config.teacher.logits to the scores of a teacher that ran elsewhere"
        )
    wanted = options.teacher
    teacher = TrainedNetwork.load(wanted.checkpoint, dtype=wanted.dtype)
    _check_described(wanted, teacher.info)
    if wanted.min_miou and not comparable(teacher, images):
        raise UserError(
            f"config.teacher.min_miou is {wanted.min_miou}, but {wanted.checkpoint} scores "
            f"{teacher.info.num_classes} classes and the data have {images.num_classes}, so that "
            "its mIoU is not known; set min_miou to 0"
        )
    teacher = ordered_teacher(teacher.frozen(wanted.dtype), wanted, images.class_names, log)
    return dataclasses.replace(teacher, variables=placement.put_state(teacher.variables))


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


def comparable(teacher: TrainedNetwork | None, images: Images) -> TrainedNetwork | None:
    """Returns the teacher if it predicts as many classes as the data have, else None."""
    if teacher is None or teacher.info.num_classes != images.num_classes:
        return None
    return teacher
