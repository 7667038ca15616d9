"""VOC 2012: SegFormer-B4 teaches SegFormer-B0 by NFD (Liu et al. 2022, our reading).

    python -m kdjax.train --config configs/voc2012_segformer_b4_b0_nfd.py \\
        --workdir runs/voc2012_segformer_b4_b0_nfd

Teacher, schedule and source: docs/recipes.md.
"""

from kdjax import recipes
from kdjax.config import Config


def get_config() -> Config:
    """Returns the config."""
    return recipes.published("voc2012", "segformer_b4_b0", "nfd")
