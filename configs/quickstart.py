"""The embedded example: a teacher, a plain student and a CWD student on procedural shapes.

    python -m kdjax.compare --config configs/quickstart.py --workdir runs/quickstart

Sized for two CPU cores: five to six minutes.
"""

from ml_collections import ConfigDict

from kdjax import config as configuration


def get_config() -> configuration.Config:
    """Returns the config."""
    config = configuration.default()
    config.steps = 300
    config.eval_every = 100
    config.data.name = "shapes"
    config.data.batch_size = 16
    config.data.eval_batch_size = 20
    config.data.crop_size = (64, 64)
    config.data.scale_range = (0.75, 1.5)
    config.data.photometric = False
    config.teacher.update(configuration.network("pspnet_r18", width=16))
    config.student.update(configuration.network("pspnet_r18", width=8))
    config.student.auxiliary = False
    config.optimizer.learning_rate = 0.1
    config.compare.teacher_steps = 500
    config.compare.teacher_learning_rate = 0.1
    with config.unlocked():
        config.compare.methods = ConfigDict(
            {"plain": {}, "cwd": {"cwd": configuration.term("cwd")}}
        )
    return config
