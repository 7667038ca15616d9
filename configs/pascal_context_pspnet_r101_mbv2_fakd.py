"""Pascal Context: PSPNet-R101 teaches PSPNet-MobileNetV2 by FAKD (Yuan et al. 2022, our reading).

    python -m kdjax.train --config configs/pascal_context_pspnet_r101_mbv2_fakd.py \\
        --workdir runs/pascal_context_pspnet_r101_mbv2_fakd

Teacher, schedule and source: docs/recipes.md. In docs/results/camvid.md this method ended
below the plain student; the recipe that gained is the one of `cwd`.
"""

from kdjax import recipes
from kdjax.config import Config


def get_config() -> Config:
    """Returns the config."""
    return recipes.published("pascal_context", "pspnet_r101_mbv2", "fakd")
