"""Cityscapes: PSPNet-R18, plain.

    python -m kdjax.train --config configs/cityscapes_pspnet_r18.py \\
        --workdir runs/cityscapes_pspnet_r18

mmrazor's model zoo, by the same schedule: teacher 79.76, this student 74.87 mIoU. Backbone,
schedule and source: docs/recipes.md. With kdjax.compare, beside all four methods.
"""

from kdjax import recipes
from kdjax.config import Config


def get_config() -> Config:
    """Returns the config."""
    return recipes.published("cityscapes", "pspnet_r101_r18")
