"""COCO-Stuff: DeepLabV3-R101 teaches DeepLabV3-R18 by PFS (Shan 2019, our reading).

    python -m kdjax.train --config configs/coco_stuff_deeplabv3_r101_r18_pfs.py \\
        --workdir runs/coco_stuff_deeplabv3_r101_r18_pfs

Teacher, schedule and source: docs/recipes.md.
"""

from kdjax import recipes
from kdjax.config import Config


def get_config() -> Config:
    """Returns the config."""
    return recipes.published("coco_stuff", "deeplabv3_r101_r18", "pfs")
