"""VOC 2012: PSPNet-MobileNetV2, plain.

    python -m kdjax.train --config configs/voc2012_pspnet_mbv2.py --workdir runs/voc2012_pspnet_mbv2

Backbone, schedule and source: docs/recipes.md. With kdjax.compare, beside all four methods.
"""

from kdjax import recipes
from kdjax.config import Config


def get_config() -> Config:
    """Returns the config."""
    return recipes.published("voc2012", "pspnet_r101_mbv2")
