"""Pascal Context: SegFormer-B0, plain.

    python -m kdjax.train --config configs/pascal_context_segformer_b0.py \\
        --workdir runs/pascal_context_segformer_b0

Backbone, schedule and source: docs/recipes.md. With kdjax.compare, beside all four methods.
"""

from kdjax import recipes
from kdjax.config import Config


def get_config() -> Config:
    """Returns the config."""
    return recipes.published("pascal_context", "segformer_b4_b0")
