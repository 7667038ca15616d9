"""The embedded example: a teacher, a plain student and a CWD student on procedural shapes.

    python -m kdjax.compare --config configs/quickstart.py --workdir runs/quickstart

Sized for two CPU cores: under five minutes.
"""

from ml_collections import ConfigDict

from kdjax import config as configuration


def get_config() -> configuration.Config:
    """Returns the config."""
    config = configuration.default()
    config.steps = 400
    config.eval_every = 100
    config.log_every = 20
    config.data.name = "shapes"
    config.data.batch_size = 16
    config.data.eval_batch_size = 20
    config.data.crop_size = (64, 64)
    config.teacher.update(configuration.network("pspnet_r18", width=32))
    config.student.update(configuration.network("pspnet_r18", width=8))
    config.optimizer.learning_rate = 0.05
    config.compare.teacher_steps = 600
    config.compare.teacher_learning_rate = 0.05
    with config.unlocked():
        config.compare.methods = ConfigDict(
            {"plain": {}, "cwd": {"cwd": configuration.term("cwd")}}
        )
    return config
