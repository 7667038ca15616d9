"""CamVid at 180 x 240, students distilled from a cache of the teacher's scores.

    python -m kdjax compare --config configs/camvid_pspnet_r18_cached.py \\
        --workdir runs/camvid_cached --config.teacher.checkpoint=runs/camvid_teacher

Runs the methods that read only scores, with the learning rate and the weights that
configs/camvid_pspnet_r18.py picks on validation. `--config.teacher.cache=` (empty) uses the live
teacher. Results: docs/results/cache.md.
"""

from kdjax import recipes
from kdjax.config import Config

METHODS = ("plain", "pixelwise_kl", "cwd", "pfs_predictions", "fakd", "fakd_cwd")


def get_config() -> Config:
    """Returns the config."""
    config = recipes.camvid()
    config.steps = 400
    config.data.crop_size = (128, 160)
    config.optimizer.learning_rate = 0.1
    config.teacher.cache = "caches/camvid"
    config.compare.seeds = (0, 1, 2, 3, 4)
    return recipes.compare_camvid_methods(config, METHODS)
