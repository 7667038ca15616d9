"""The embedded example: a teacher, a plain student, and a CWD student on generated shapes.

    python -m kdjax compare --config configs/quickstart.py --workdir runs/quickstart

It takes about four minutes on two slow CPU cores. In so few steps, the teacher speeds the student
up: docs/start.md has the gain over five seeds.
"""

from kdjax import recipes
from kdjax.config import Config, network


def get_config() -> Config:
    """Returns the config."""
    config = recipes.shapes()
    config.steps = 200
    config.eval_every = 100
    config.compare.teacher_steps = 250
    # Feature pyramids without dilation: fast on a CPU, and stable in few steps.
    config.teacher.update(network("fpn_light_r18", width=32))
    config.student.update(network("fpn_light_r18", width=16))
    config.optimizer.learning_rate = config.compare.teacher_learning_rate = 0.2
    config.optimizer.warmup_steps = 50
    config.compare.cache = True
    # A cached step costs about as much as a plain one, and a second plain student takes a minute.
    config.compare.equal_time = False
    return recipes.compare_methods(config, ["plain", "cwd"])
