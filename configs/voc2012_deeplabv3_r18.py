"""VOC 2012: DeepLabV3-R18, plain.

    python -m kdjax.train --config configs/voc2012_deeplabv3_r18.py \\
        --workdir runs/voc2012_deeplabv3_r18

Backbone, schedule and source: docs/recipes.md. With kdjax.compare, beside all four methods.
"""

from kdjax import recipes
from kdjax.config import Config


def get_config() -> Config:
    """Returns the config."""
    return recipes.published("voc2012", "deeplabv3_r101_r18")
