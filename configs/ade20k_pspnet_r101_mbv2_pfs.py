"""ADE20K: PSPNet-R101 teaches PSPNet-MobileNetV2 by PFS (Shan 2019, our reading).

    python -m kdjax.train --config configs/ade20k_pspnet_r101_mbv2_pfs.py \\
        --workdir runs/ade20k_pspnet_r101_mbv2_pfs

Teacher, schedule and source: docs/recipes.md.
"""

from kdjax import recipes
from kdjax.config import Config


def get_config() -> Config:
    """Returns the config."""
    return recipes.published("ade20k", "pspnet_r101_mbv2", "pfs")
