"""Pascal Context: PSPNet-R101 teaches PSPNet-R18 by NFD (Liu et al. 2022, our reading).

    python -m kdjax.train --config configs/pascal_context_pspnet_r101_r18_nfd.py \\
        --workdir runs/pascal_context_pspnet_r101_r18_nfd

Teacher, schedule and source: docs/recipes.md.
"""

from kdjax import recipes
from kdjax.config import Config


def get_config() -> Config:
    """Returns the config."""
    return recipes.published("pascal_context", "pspnet_r101_r18", "nfd")
