"""The terms, the state and the step of a config's training, from its networks."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from kdjax.distillation import Distiller, Maps
from kdjax.models.keys import traced_rngs
from kdjax.training import optimizer as optimizers
from kdjax.training.objective import IGNORE_LABEL, Objective
from kdjax.training.state import TrainState, create_state
from kdjax.training.step import Side, TrainStep, make_train_step


def assemble_distiller(
    config: Any, student: nnx.Module, teacher: nnx.Module | None
) -> Distiller | None:
    """The distillation terms of a config; None where it has none.

    What maps there are, and of which channels and strides, is found by tracing both networks.

    Raises:
      UserError: for terms that do not go with the networks.
    """
    if not config.terms:
        return None
    size = tuple(config.data.crop_size)
    return Distiller(
        config.terms,
        student=trace_maps(student, size, train=True),
        teacher=trace_maps(teacher, size, train=False) if teacher else None,
        image_size=size,
        ignore_label=IGNORE_LABEL,
        where="config.terms",
    )


def assemble_state(
    config: Any, student: nnx.Module, distiller: Distiller | None
) -> tuple[nnx.GraphDef, TrainState]:
    """The student's structure, and the state before the first step."""
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


def trace_maps(net: nnx.Module, size: tuple[int, ...], *, train: bool) -> Maps:
    """What stands for the maps of a network, by name.

    Args:
      net: the network.
      size: height and width of the images.
      train: whether as in training, with an auxiliary head.
    """
    graphdef, state = nnx.split(net)
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)

    def forward(state: Any, images: jax.Array) -> Maps:
        called: Any = nnx.merge(graphdef, state, copy=True)
        if not train:
            return called(images).maps
        return called(images, train=True, rngs=traced_rngs(dropout=0)).maps

    return jax.eval_shape(forward, state, images)
