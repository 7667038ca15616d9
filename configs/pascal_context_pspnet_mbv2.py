"""Pascal Context: PSPNet-MobileNetV2, plain.

    python -m kdjax.train --config configs/pascal_context_pspnet_mbv2.py \\
        --workdir runs/pascal_context_pspnet_mbv2

Backbone, schedule and source: docs/recipes.md. With kdjax.compare, beside all four methods.
"""

from kdjax import recipes
from kdjax.config import Config


def get_config() -> Config:
    """Returns the config."""
    return recipes.published("pascal_context", "pspnet_r101_mbv2")
