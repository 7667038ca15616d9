"""CamVid at 180 x 240, a student distilled by NFD.

    python -m kdjax train --config configs/camvid_pspnet_r18_nfd.py --workdir runs/camvid_nfd

Normalized feature distillation (Liu et al. 2022, our reading). Train the
teacher first: configs/camvid_pspnet_r18_teacher.py.
"""

from kdjax import recipes
from kdjax.config import Config


def get_config() -> Config:
    """Returns the config."""
    return recipes.teach(recipes.camvid(), "nfd", teacher="runs/camvid_teacher")
