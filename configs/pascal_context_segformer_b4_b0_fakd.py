"""Pascal Context: SegFormer-B4 teaches SegFormer-B0 by FAKD (Yuan et al. 2022, our reading).

    python -m kdjax.train --config configs/pascal_context_segformer_b4_b0_fakd.py \\
        --workdir runs/pascal_context_segformer_b4_b0_fakd

Teacher, schedule and source: docs/recipes.md. In docs/results/camvid.md this method ended
below the plain student; the recipe that gained is the one of `cwd`.
"""

from kdjax import recipes
from kdjax.config import Config


def get_config() -> Config:
    """Returns the config."""
    return recipes.published("pascal_context", "segformer_b4_b0", "fakd")
