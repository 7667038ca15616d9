"""ADE20K: DeepLabV3-R101 teaches DeepLabV3-R18 by FAKD (Yuan et al. 2022, our reading).

    python -m kdjax.train --config configs/ade20k_deeplabv3_r101_r18_fakd.py \\
        --workdir runs/ade20k_deeplabv3_r101_r18_fakd

Teacher, schedule and source: docs/recipes.md. In docs/results/camvid.md this method ended
below the plain student; the recipe that gained is the one of `cwd`.
"""

from kdjax import recipes
from kdjax.config import Config


def get_config() -> Config:
    """Returns the config."""
    return recipes.published("ade20k", "deeplabv3_r101_r18", "fakd")
