"""CamVid at 180 x 240, twice as long as camvid_pspnet_r18_longer.py: the four papers, five seeds.

    python -m kdjax compare --config configs/camvid_pspnet_r18_1000_steps.py --parallel 2 \\
        --workdir runs/camvid_1000 --config.teacher.checkpoint=runs/camvid_teacher2

The teacher, learning rate, and weights are those of camvid_pspnet_r18_longer.py. Results:
docs/results/camvid.md.
"""

from kdjax import recipes
from kdjax.config import Config

METHODS = ("plain", "fakd_cwd", "cwd", "nfd", "pfs")


def get_config() -> Config:
    """Returns the config."""
    config = recipes.camvid()
    config.steps = 1000
    config.compare.seeds = tuple(range(5))
    return recipes.compare_camvid_methods(config, METHODS)
