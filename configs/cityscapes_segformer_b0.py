"""Cityscapes: SegFormer-B0, plain.

    python -m kdjax.train --config configs/cityscapes_segformer_b0.py \\
        --workdir runs/cityscapes_segformer_b0

Backbone, schedule and source: docs/recipes.md. With kdjax.compare, beside all four methods.
"""

from kdjax import recipes
from kdjax.config import Config


def get_config() -> Config:
    """Returns the config."""
    return recipes.published("cityscapes", "segformer_b4_b0")
