"""Nine methods on CamVid at 180 x 240, tuned: a PSPNet-R18 of width 32 teaches one of width 8.

    python -m kdjax prepare folder --source CAMVID --data_dir data/camvid --ignore 11
    python -m kdjax compare --config configs/camvid_pspnet_r18.py --workdir runs/camvid

CAMVID contains `images/<split>` and `labels/<split>` with the 11 classes of SegNet's copy. Label 11
stands for unlabeled pixels. With these steps and crops, a CPU core does a hundred runs in three
hours. Results: docs/results/camvid.md.
"""

from kdjax import recipes
from kdjax.config import Config

METHODS = (
    "plain",
    "pixelwise_kl",
    "cwd",
    "nfd",
    "pfs_similarities",
    "pfs_predictions",
    "pfs",
    "fakd",
    "fakd_cwd",
    "skd_pairwise",
)


def get_config() -> Config:
    """Returns the config."""
    config = recipes.camvid()
    config.steps = 400
    config.data.crop_size = (128, 160)
    config.compare.learning_rates = (0.05, 0.1, 0.2, 0.4)
    config.compare.weight_factors = (0.3, 1.0, 3.0)
    config.compare.tuning_seeds = (1000,)
    config.compare.seeds = (0, 1, 2, 3, 4)
    return recipes.compare_methods(config, METHODS)
