"""Procedural shapes, a student distilled by PFS.

    python -m kdjax train --config configs/shapes_pspnet_r18_pfs.py --workdir runs/shapes_pfs

Pixel-wise feature similarities and gap-weighted soft predictions (Shan 2019, our reading).
Train the teacher first: configs/shapes_pspnet_r18_teacher.py.
"""

from kdjax import recipes
from kdjax.config import Config


def get_config() -> Config:
    """Returns the config."""
    return recipes.teach(recipes.shapes(), "pfs", teacher="runs/shapes_teacher")
