"""The teacher of a run: loaded and, where the config asks for it, in int8."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from kdjax.config import RunOptions
from kdjax.data.images import Images
from kdjax.distillation import need_teacher
from kdjax.errors import UserError
from kdjax.evaluation.evaluator import Scores, TrainedNetwork, evaluate
from kdjax.log import RunLogger
from kdjax.models.int8 import Int8Network, check_platform
from kdjax.models.options import TeacherOptions
from kdjax.models.saved import NetworkInfo
from kdjax.teacher_cache.precomputed_logits import PrecomputedLogits
from kdjax.training.sharding import Placement

# Their maps set the scales of int8.
CALIBRATION_CROPS = 16


def precomputed_logits(options: RunOptions, images: Images) -> PrecomputedLogits | None:
    """The scores of a teacher that ran elsewhere; None where there are none, or no term reads any.

    Raises:
      UserError: where they do not go with the images.
    """
    if not options.teacher.logits or not need_teacher(options.terms):
        return None
    return PrecomputedLogits(options.teacher.logits, images, options.data.train_split)


def load_teacher(
    options: RunOptions, images: Images, placement: Placement, log: RunLogger
) -> TrainedNetwork | None:
    """The network that teaches, on the devices; None where no term reads any.

    Raises:
      UserError: where the config names none, or not this one, and where int8 changes too much.
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

    def placed(network: TrainedNetwork, log: RunLogger | None) -> TrainedNetwork:
        network = ordered_teacher(network, wanted, images.class_names, log)
        return dataclasses.replace(network, variables=placement.put_state(network.variables))

    if not wanted.int8:
        return placed(teacher.frozen(wanted.dtype), log)
    check_platform(jax.default_backend())
    crops = images.first_crops(CALIBRATION_CROPS, clean_view=wanted.view == "clean")
    quantized = placed(_in_int8(teacher, crops), log)
    _check_agreement(quantized, placed(teacher, None), options, images, placement, log)
    return quantized


def ordered_teacher(
    teacher: TrainedNetwork,
    options: TeacherOptions,
    class_names: Sequence[str],
    log: RunLogger | None = None,
) -> TrainedNetwork:
    """Returns the teacher with its class scores in the order of the data's classes.

    Raises:
      UserError: as `TrainedNetwork.in_order_of`.
    """
    return teacher.in_order_of(
        class_names,
        where=f"config.teacher.checkpoint {options.checkpoint}",
        accept="config.teacher.any_class_names",
        any_names=options.any_class_names,
        log=log and log.info,
    )


def _check_described(wanted: TeacherOptions, info: NetworkInfo) -> None:
    """Requires the teacher that the config describes, as far as the config describes one."""
    described = ("name", "width", "options") if wanted.name else ("options",)
    for key in described:
        here, there = getattr(wanted, key), getattr(info, key)
        if here != there and (wanted.name or here):
            raise UserError(
                f"config.teacher.{key} is {here!r}, but {wanted.checkpoint} holds {there!r}"
            )


def _in_int8(teacher: TrainedNetwork, crops: UInt8[np.ndarray, "B H W 3"]) -> TrainedNetwork:
    network, preprocessing = Int8Network(teacher.network), teacher.info.preprocessing
    variables = network.quantize(teacher.variables, preprocessing(jnp.asarray(crops)))
    return teacher.running(network, variables)


def _check_agreement(
    quantized: TrainedNetwork,
    teacher: TrainedNetwork,
    options: RunOptions,
    images: Images,
    placement: Placement,
    log: RunLogger,
) -> None:
    """Logs what int8 changed on the validation split, and refuses too much of it."""
    split, wanted = options.data.val_split, options.teacher.min_agreement

    def score(network: TrainedNetwork, reference: TrainedNetwork | None) -> Scores:
        return evaluate(
            network.predictor,
            network.variables,
            images.eval_batches(split),
            max(images.num_classes, network.info.num_classes),
            placement.put_batch,
            reference=reference and (reference.predictor, reference.variables),
        )

    agreement = score(quantized, teacher).agreement or 0.0
    line = (
        f"teacher in int8, calibrated on {CALIBRATION_CROPS} training crops: it labels "
        f"{100 * agreement:.2f} % of the pixels of {split} as in {options.teacher.dtype}"
    )
    if comparable(teacher, images):
        line += f", where it has mIoU {100 * score(teacher, None).miou:.2f} %"
    log.info(line)
    if agreement < wanted:
        raise UserError(
            f"config.teacher.int8: the teacher labels {agreement:.4f} of the pixels of {split} as "
            f"in {options.teacher.dtype}, fewer than config.teacher.min_agreement {wanted}; set "
            "int8 to False, or that lower"
        )


def comparable(teacher: TrainedNetwork | None, images: Images) -> TrainedNetwork | None:
    """The teacher where it predicts the classes of the data, rather than only having features."""
    if teacher is None or teacher.info.num_classes != images.num_classes:
        return None
    return teacher
