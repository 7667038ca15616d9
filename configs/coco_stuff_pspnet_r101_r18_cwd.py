"""COCO-Stuff: PSPNet-R101 teaches PSPNet-R18 by CWD (Shu et al. 2021).

    python -m kdjax.train --config configs/coco_stuff_pspnet_r101_r18_cwd.py \\
        --workdir runs/coco_stuff_pspnet_r101_r18_cwd

Teacher, schedule and source: docs/recipes.md.
"""

from kdjax import recipes
from kdjax.config import Config


def get_config() -> Config:
    """Returns the config."""
    return recipes.published("coco_stuff", "pspnet_r101_r18", "cwd")
