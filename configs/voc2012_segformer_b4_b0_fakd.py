"""VOC 2012: SegFormer-B4 teaches SegFormer-B0 by FAKD (Yuan et al. 2022, our reading).

    python -m kdjax.train --config configs/voc2012_segformer_b4_b0_fakd.py \\
        --workdir runs/voc2012_segformer_b4_b0_fakd

Teacher, schedule and source: docs/recipes.md. In docs/results/camvid.md this method ended
below the plain student; the recipe that gained is the one of `cwd`.
"""

from kdjax import recipes
from kdjax.config import Config


def get_config() -> Config:
    """Returns the config."""
    return recipes.published("voc2012", "segformer_b4_b0", "fakd")
