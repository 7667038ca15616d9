"""CamVid at 180 x 240, longer and with a better teacher: the four papers, eight seeds.

    python -m kdjax compare --config configs/camvid_pspnet_r18_longer.py --parallel 2 \\
        --workdir runs/camvid_longer --config.teacher.checkpoint=runs/camvid_teacher2

The weights are those that configs/camvid_pspnet_r18.py picks on validation at a shorter schedule.
docs/results/camvid.md gives the results, and says how the teacher was trained.
"""

from kdjax import recipes
from kdjax.config import Config

METHODS = ("plain", "cwd", "nfd", "pfs", "fakd", "fakd_cwd", "pixelwise_kl")


def get_config() -> Config:
    """Returns the config."""
    config = recipes.camvid()
    config.compare.seeds = tuple(range(8))
    return recipes.compare_camvid_methods(config, METHODS)
