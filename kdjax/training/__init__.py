"""State, step, loop, optimizer, sharding, and checkpoints of a training run."""

from kdjax.training.checkpoints import Checkpoints
from kdjax.training.loop import Diverged, Fitted, Interruption, fit
from kdjax.training.optimizer import learning_rate_schedule, make_optimizer
from kdjax.training.sharding import Placement
from kdjax.training.step import (
    Objective,
    PreprocessedNetwork,
    TrainState,
    TrainStep,
    create_state,
    make_train_step,
)

__all__ = [
    "Checkpoints",
    "Diverged",
    "Fitted",
    "Interruption",
    "Objective",
    "Placement",
    "PreprocessedNetwork",
    "TrainState",
    "TrainStep",
    "create_state",
    "fit",
    "learning_rate_schedule",
    "make_optimizer",
    "make_train_step",
]
