"""ADE20K: SegFormer-B0, plain.

    python -m kdjax.train --config configs/ade20k_segformer_b0.py --workdir runs/ade20k_segformer_b0

Backbone, schedule and source: docs/recipes.md. With kdjax.compare, beside all four methods.
"""

from kdjax import recipes
from kdjax.config import Config


def get_config() -> Config:
    """Returns the config."""
    return recipes.published("ade20k", "segformer_b4_b0")
