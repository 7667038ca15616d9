"""The state and the step of a config's training, from its networks and its terms."""

from typing import Any

import jax
from flax import nnx

from kdjax.distillation import terms as distillation_terms
from kdjax.distillation.objective import Objective
from kdjax.distillation.terms import Term
from kdjax.training import optimizer as optimizers
from kdjax.training.state import TrainState, create_state
from kdjax.training.step import Side, TrainStep, make_train_step


def assemble_state(
    config: Any, student: nnx.Module, terms: tuple[Term, ...], num_classes: int
) -> tuple[nnx.GraphDef, TrainState]:
    """The student's structure, and the state before the first step."""
    return create_state(
        student,
        distillation_terms.init_adapters(terms, jax.random.key(config.seed)),
        distillation_terms.init_statistics(terms, num_classes),
        optimizers.make_optimizer(config.optimizer, config.steps),
        ema=config.optimizer.ema_decay > 0,
        seed=config.seed,
    )


def assemble_step(
    config: Any, student: Side, teacher: Side | None, terms: tuple[Term, ...]
) -> TrainStep:
    """The step, not yet jitted."""
    return make_train_step(
        student,
        teacher,
        Objective(config.loss.cross_entropy, config.loss.auxiliary, terms, config.loss.mean_over),
        optimizers.make_optimizer(config.optimizer, config.steps),
        optimizers.learning_rate_schedule(config.optimizer, config.steps),
        steps=config.steps,
        accumulate=config.optimizer.accumulate,
        ema_decay=config.optimizer.ema_decay,
    )
