"""COCO-Stuff: SegFormer-B0, plain.

    python -m kdjax.train --config configs/coco_stuff_segformer_b0.py \\
        --workdir runs/coco_stuff_segformer_b0

Backbone, schedule and source: docs/recipes.md. With kdjax.compare, beside all four methods.
"""

from kdjax import recipes
from kdjax.config import Config


def get_config() -> Config:
    """Returns the config."""
    return recipes.published("coco_stuff", "segformer_b4_b0")
