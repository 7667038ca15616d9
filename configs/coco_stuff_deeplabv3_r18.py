"""COCO-Stuff: DeepLabV3-R18, plain.

    python -m kdjax.train --config configs/coco_stuff_deeplabv3_r18.py \\
        --workdir runs/coco_stuff_deeplabv3_r18

Backbone, schedule and source: docs/recipes.md. With kdjax.compare, beside all four methods.
"""

from kdjax import recipes
from kdjax.config import Config


def get_config() -> Config:
    """Returns the config."""
    return recipes.published("coco_stuff", "deeplabv3_r101_r18")
