"""A run, and a comparison, in which whatever has a name is the user's own.

The argument says of which kind the student is; the teacher is of another.
"""

from kdjax import config as configuration
from kdjax import recipes

TEACHERS = {"Nnx": "Linen", "Linen": "Plain", "Plain": "Nnx"}


def get_config(student):
    """Returns the config."""
    config = configuration.default()
    config.steps = 6
    config.log_every = 1
    config.eval_every = 3
    config.checkpoint_every = 2
    config.data.batch_size = config.data.eval_batch_size = 8
    config.data.crop_size = (32, 32)
    config.data.cache = "none"
    config.optimizer.name = "my_extension.optimizers:noisy"
    config.optimizer.schedule = "my_extension.optimizers:sawtooth"
    config.optimizer.ema_decay = 0.9
    config.compare.teacher_steps = 2
    # It depends on measured times.
    config.compare.equal_time = False
    network = configuration.network
    with config.unlocked():
        config.student.update(network(f"my_extension.networks:{student}", channels=6))
        config.teacher.update(network(f"my_extension.networks:{TEACHERS[student]}"))
        if student == "Nnx":
            config.data.name = "my_extension.data:Stripes"
        else:
            config.data.name = "my_extension.data:stripes"
            config.data.options.seed = 1
        config.optimizer.options.noise = 1e-3
        config.optimizer.schedule_options.teeth = 2
    recipes.compare_methods(config, ["plain", "my_extension.methods:mine"])
    with config.unlocked():
        config.terms = config.compare.methods.mine.copy_and_resolve_references()
    return config
