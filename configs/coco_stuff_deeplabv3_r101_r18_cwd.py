"""COCO-Stuff: DeepLabV3-R101 teaches DeepLabV3-R18 by CWD (Shu et al. 2021).

    python -m kdjax.train --config configs/coco_stuff_deeplabv3_r101_r18_cwd.py \\
        --workdir runs/coco_stuff_deeplabv3_r101_r18_cwd

Teacher, schedule and source: docs/recipes.md.
"""

from kdjax import recipes
from kdjax.config import Config


def get_config() -> Config:
    """Returns the config."""
    return recipes.published("coco_stuff", "deeplabv3_r101_r18", "cwd")
