"""Cityscapes: SegFormer-B4 teaches SegFormer-B0 by CWD (Shu et al. 2021).

    python -m kdjax.train --config configs/cityscapes_segformer_b4_b0_cwd.py \\
        --workdir runs/cityscapes_segformer_b4_b0_cwd

Teacher, schedule and source: docs/recipes.md.
"""

from kdjax import recipes
from kdjax.config import Config


def get_config() -> Config:
    """Returns the config."""
    return recipes.published("cityscapes", "segformer_b4_b0", "cwd")
