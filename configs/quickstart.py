"""The quickstart: a teacher, a plain student and a CWD student on procedural shapes.

    python -m kdjax compare --config configs/quickstart.py --workdir runs/quickstart

It takes under five minutes on two CPU cores.
"""

from kdjax import recipes
from kdjax.config import Config


def get_config() -> Config:
    """Returns the config."""
    config = recipes.shapes()
    config.steps = 300
    config.eval_every = 100
    config.compare.teacher_steps = 500
    # At twice this rate, or without a warm-up, the loss of some runs does not fall for hundreds of
    # steps. Rounding decides which runs.
    config.optimizer.learning_rate = config.compare.teacher_learning_rate = 0.2
    config.optimizer.warmup_steps = 50
    return recipes.compare_methods(config, ["plain", "cwd"])
