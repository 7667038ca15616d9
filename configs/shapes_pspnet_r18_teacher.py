"""Procedural shapes: the teacher of the recipes whose names start with shapes_pspnet_r18.

python -m kdjax train --config configs/shapes_pspnet_r18_teacher.py --workdir runs/shapes_teacher
"""

from kdjax import recipes
from kdjax.config import Config


def get_config() -> Config:
    """Returns the config."""
    return recipes.teacher_of(recipes.shapes())
