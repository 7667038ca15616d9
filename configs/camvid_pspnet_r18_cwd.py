"""CamVid at 180 x 240, a student distilled by CWD.

    python -m kdjax train --config configs/camvid_pspnet_r18_cwd.py --workdir runs/camvid_cwd

Channel-wise distillation of the class scores (Shu et al. 2021). Train the
teacher first: configs/camvid_pspnet_r18_teacher.py.
"""

from kdjax import recipes
from kdjax.config import Config


def get_config() -> Config:
    """Returns the config."""
    return recipes.teach(recipes.camvid(), "cwd", teacher="runs/camvid_teacher")
