"""CamVid at 180 x 240: the teacher of the recipes whose names start with camvid_pspnet_r18.

python -m kdjax train --config configs/camvid_pspnet_r18_teacher.py --workdir runs/camvid_teacher
"""

from kdjax import recipes
from kdjax.config import Config


def get_config() -> Config:
    """Returns the config."""
    return recipes.teacher_of(recipes.camvid())
