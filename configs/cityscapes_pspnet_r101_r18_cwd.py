"""Cityscapes: PSPNet-R101 teaches PSPNet-R18 by CWD (Shu et al. 2021).

    python -m kdjax.train --config configs/cityscapes_pspnet_r101_r18_cwd.py \\
        --workdir runs/cityscapes_pspnet_r101_r18_cwd

mmrazor's model zoo, by the same schedule and weight: teacher 79.76, plain 74.87, CWD 75.54 mIoU.
Teacher, schedule and source: docs/recipes.md.
"""

from kdjax import recipes
from kdjax.config import Config


def get_config() -> Config:
    """Returns the config."""
    return recipes.published("cityscapes", "pspnet_r101_r18", "cwd")
