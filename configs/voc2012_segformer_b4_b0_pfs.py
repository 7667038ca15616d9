"""VOC 2012: SegFormer-B4 teaches SegFormer-B0 by PFS (Shan 2019, our reading).

    python -m kdjax.train --config configs/voc2012_segformer_b4_b0_pfs.py \\
        --workdir runs/voc2012_segformer_b4_b0_pfs

Teacher, schedule and source: docs/recipes.md.
"""

from kdjax import recipes
from kdjax.config import Config


def get_config() -> Config:
    """Returns the config."""
    return recipes.published("voc2012", "segformer_b4_b0", "pfs")
