"""The embedded example: a teacher, a plain student and a CWD student on procedural shapes.

    python -m kdjax.compare --config configs/quickstart.py --workdir runs/quickstart

Sized for two CPU cores: under five minutes.
"""

from kdjax import recipes
from kdjax.config import Config


def get_config() -> Config:
    """Returns the config."""
    config = recipes.shapes()
    config.steps = 300
    config.eval_every = 100
    config.compare.teacher_steps = 500
    return recipes.compare_methods(config, ["plain", "cwd"])
