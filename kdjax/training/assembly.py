"""The terms, the state and the step of a config's training, from its networks."""

from collections.abc import Mapping
from typing import Any

import jax

from kdjax.classes import IGNORE_LABEL
from kdjax.distillation import Distiller, Spec
from kdjax.distillation.maps import array_of
from kdjax.errors import UserError
from kdjax.models import Network, Variables
from kdjax.models.network import SCORES, trace_maps
from kdjax.training import optimizer as optimizers
from kdjax.training.state import TrainState, create_state
from kdjax.training.step import Objective, Side, TrainStep, make_train_step


def assemble_distiller(
    config: Any,
    student: tuple[Network, Variables],
    teacher: tuple[Network, Variables] | Mapping[str, Spec] | None,
    *,
    num_classes: int,
) -> Distiller | None:
    """The distillation terms of a config; None where it has none.

    What maps there are, and of which channels and strides, is found by tracing both networks.

    Args:
      config: of the run.
      student: the network and its variables, or what stands for them.
      teacher: likewise, or its maps alone; None where no term reads it.
      num_classes: of the data.

    Raises:
      UserError: for terms that do not go with the networks, and networks that fail, or score other
        classes.
    """
    size = tuple(config.data.crop_size)
    maps = trace_maps(*student, size, train=True, name=f"config.student {config.student.name}")
    if (found := array_of(maps[SCORES]).shape[-1]) != num_classes:
        raise UserError(
            f"config.student {config.student.name} scores {found} classes; the data have "
            f"{num_classes}"
        )
    if not config.terms:
        return None
    if teacher is None or isinstance(teacher, Mapping):
        taught = teacher
    else:
        name = f"config.teacher {config.teacher.name or config.teacher.checkpoint}"
        taught = trace_maps(*teacher, size, train=False, name=name)
    return Distiller(
        config.terms,
        student=maps,
        teacher=taught,
        image_size=size,
        ignore_label=IGNORE_LABEL,
        where="config.terms",
    )


def assemble_state(config: Any, student: Variables, distiller: Distiller | None) -> TrainState:
    """The state before the first step, of a student's variables."""
    return create_state(
        student,
        distiller.init(jax.random.key(config.seed)) if distiller else ({}, {}),
        optimizers.make_optimizer(config.optimizer, config.steps),
        ema=config.optimizer.ema_decay > 0,
        seed=config.seed,
    )


def assemble_step(
    config: Any, student: Side, teacher: Side | None, distiller: Distiller | None
) -> TrainStep:
    """The step, not yet jitted."""
    return make_train_step(
        student,
        teacher,
        Objective(
            config.loss.cross_entropy, config.loss.auxiliary, distiller, config.loss.mean_over
        ),
        optimizers.make_optimizer(config.optimizer, config.steps),
        optimizers.learning_rate_schedule(config.optimizer, config.steps),
        steps=config.steps,
        accumulate=config.optimizer.accumulate,
        ema_decay=config.optimizer.ema_decay,
    )
