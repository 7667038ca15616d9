"""CamVid at 180 x 240 on a CPU: a PSPNet-R18 of width 32 teaches one of width 8, by CWD and KL.

    python -m kdjax.prepare folder --source CAMVID --data_dir data/camvid --ignore 11
    python -m kdjax.compare --config configs/camvid_pspnet_r18.py --workdir runs/camvid

CAMVID holds `images/<split>` and `labels/<split>` with the 11 classes of SegNet's copy, 11 for
unlabelled. Results: docs/results/camvid.md.
"""

from kdjax import recipes
from kdjax.config import Config


def get_config() -> Config:
    """Returns the config."""
    config = recipes.camvid()
    with config.unlocked():
        config.compare.methods = recipes.methods(["plain", "cwd", "pixelwise_kl"])
    return config
