"""Procedural shapes, a student distilled by NFD.

    python -m kdjax train --config configs/shapes_pspnet_r18_nfd.py --workdir runs/shapes_nfd

Normalized feature distillation (Liu et al. 2022, our reading). Train the
teacher first: configs/shapes_pspnet_r18_teacher.py.
"""

from kdjax import recipes
from kdjax.config import Config


def get_config() -> Config:
    """Returns the config."""
    return recipes.teach(recipes.shapes(), "nfd", teacher="runs/shapes_teacher")
