"""VOC 2012: PSPNet-R101 teaches PSPNet-MobileNetV2 by PFS (Shan 2019, our reading).

    python -m kdjax.train --config configs/voc2012_pspnet_r101_mbv2_pfs.py \\
        --workdir runs/voc2012_pspnet_r101_mbv2_pfs

Teacher, schedule and source: docs/recipes.md.
"""

from kdjax import recipes
from kdjax.config import Config


def get_config() -> Config:
    """Returns the config."""
    return recipes.published("voc2012", "pspnet_r101_mbv2", "pfs")
