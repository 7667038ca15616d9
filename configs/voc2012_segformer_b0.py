"""VOC 2012: SegFormer-B0, plain.

    python -m kdjax.train --config configs/voc2012_segformer_b0.py \\
        --workdir runs/voc2012_segformer_b0

Backbone, schedule and source: docs/recipes.md. With kdjax.compare, beside all four methods.
"""

from kdjax import recipes
from kdjax.config import Config


def get_config() -> Config:
    """Returns the config."""
    return recipes.published("voc2012", "segformer_b4_b0")
