"""Pascal Context: SegFormer-B4 teaches SegFormer-B0 by NFD (Liu et al. 2022, our reading).

    python -m kdjax.train --config configs/pascal_context_segformer_b4_b0_nfd.py \\
        --workdir runs/pascal_context_segformer_b4_b0_nfd

Teacher, schedule and source: docs/recipes.md.
"""

from kdjax import recipes
from kdjax.config import Config


def get_config() -> Config:
    """Returns the config."""
    return recipes.published("pascal_context", "segformer_b4_b0", "nfd")
