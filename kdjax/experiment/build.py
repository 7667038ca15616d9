"""Makes the distiller, the state, and the step of a run from its options and networks."""

import dataclasses
from collections.abc import Mapping

import jax

from kdjax.config import RunOptions
from kdjax.data.run_data import RunData
from kdjax.distillation import Distiller, Maps, Spec
from kdjax.models import Network, Variables
from kdjax.models.network import scored_classes, trace_maps
from kdjax.training import optimizer as optimizers
from kdjax.training.label_losses import LossOptions
from kdjax.training.step import (
    Objective,
    PreprocessedNetwork,
    TrainState,
    TrainStep,
    create_state,
    make_train_step,
)
from kdjax.utils.classes import IGNORE_LABEL
from kdjax.utils.errors import UserError


def build_distiller(
    options: RunOptions,
    student: tuple[Network, Variables],
    teacher: tuple[Network, Variables] | Mapping[str, Spec] | None,
    *,
    num_classes: int,
    channels: tuple[int, int] = (3, 3),
) -> Distiller | None:
    """Returns the distillation terms of a config, or None if the config has none.

    Traces both networks on batches of training, to find their maps and to fail early.

    Args:
      options: the options of the run.
      student: the network and its variables, which may be `jax.ShapeDtypeStruct`s.
      teacher: the same for the teacher, or its maps alone. None if no term reads the teacher.
      num_classes: the number of classes of the data.
      channels: the number of channels that the student and the teacher take.

    Raises:
      UserError: if a term does not fit the networks, if a network fails or scores other classes, or
        if a student without class scores should learn from labels.
    """
    size, micro_batch = options.data.crop_size, micro_batch_size(options)
    name = f"config.student {options.student.name}"
    maps = trace_maps(
        *student, size, train=True, batch=micro_batch, channels=channels[0], name=name
    )
    found = scored_classes(maps)
    if not found:
        _check_extractor(options, maps)
    elif found != num_classes:
        raise UserError(f"{name} scores {found} classes; the data have {num_classes}")
    if not options.terms:
        return None
    if teacher is None or isinstance(teacher, Mapping):
        teacher_maps = teacher
    else:
        name = f"config.teacher {options.teacher.name or options.teacher.checkpoint}"
        teacher_maps = trace_maps(
            *teacher, size, train=False, batch=micro_batch, channels=channels[1], name=name
        )
    return Distiller(
        options.terms,
        student=maps,
        teacher=teacher_maps,
        image_size=size,
        ignore_label=IGNORE_LABEL,
        where="config.terms",
    )


def _check_extractor(options: RunOptions, maps: Maps) -> None:
    """Requires that a student without class scores learns from terms alone."""
    name = f"config.student {options.student.name} has no class scores"
    if options.loss.reads_scores:
        raise UserError(
            f"{name}, only {', '.join(maps)}, so no cross-entropy; set config.loss.cross_entropy "
            "(and dice and lovasz) to 0, or choose a network with a head"
        )
    if not options.terms:
        raise UserError(f"{name}, so it needs config.terms to learn from")


def micro_batch_size(options: RunOptions) -> int:
    """Returns the number of images that a step passes through the networks at once."""
    return options.data.batch_size // options.optimizer.accumulate


def check_evaluation(
    options: RunOptions,
    images: RunData,
    network: Network,
    variables: Variables,
    name: str,
    *,
    channels: int,
) -> None:
    """Traces a network on the smallest and the largest images of the evaluation.

    Args:
      options: the options of the run.
      images: the data set.
      network: the network.
      variables: its arrays.
      name: the network's name in messages.
      channels: the number of channels that the network takes.

    Raises:
      UserError: if the network fails on such images.
    """
    for size in images.evaluated_sizes():
        batch = options.data.eval_batch_size
        trace_maps(network, variables, size, train=False, batch=batch, channels=channels, name=name)


def with_class_weights(loss: LossOptions, images: RunData) -> LossOptions:
    """Returns the options of a loss with class weights as numbers, if there are any.

    Args:
      loss: the options.
      images: the data set, whose training images weightings are computed from.

    Raises:
      UserError: if the weights are not one for each class, or no pixel has a label.
    """
    if loss.class_weighting != "given":
        weights = images.class_weights(loss.class_weighting)
        return dataclasses.replace(loss, class_weights=weights, class_weighting="given")
    if loss.class_weights and len(loss.class_weights) != images.num_classes:
        raise UserError(
            f"config.loss.class_weights has {len(loss.class_weights)} numbers; the data have "
            f"{images.num_classes} classes: {', '.join(images.class_names)}"
        )
    return loss


def build_state(options: RunOptions, student: Variables, distiller: Distiller | None) -> TrainState:
    """Returns the state before the first step."""
    return create_state(
        student,
        distiller.init(jax.random.key(options.seed)) if distiller else ({}, {}),
        optimizers.make_optimizer(options.optimizer, options.steps),
        ema=options.optimizer.ema_decay > 0,
        seed=options.seed,
    )


def build_step(
    options: RunOptions,
    student: PreprocessedNetwork,
    teacher: PreprocessedNetwork | None,
    distiller: Distiller | None,
) -> TrainStep:
    """Returns the training step, without `jax.jit`.

    Class weights are those that the options give. Without data, "inverse_frequency" and
    "median_frequency" are unknown, and all classes count equally.
    """
    loss = options.loss
    return make_train_step(
        student,
        teacher,
        Objective(loss.cross_entropy, loss.auxiliary, distiller, loss.mean_over, rare=loss),
        optimizers.make_optimizer(options.optimizer, options.steps),
        optimizers.learning_rate_schedule(options.optimizer, options.steps),
        steps=options.steps,
        accumulate=options.optimizer.accumulate,
        ema_decay=options.optimizer.ema_decay,
    )
