"""CamVid at 180 x 240, a student distilled by PFS.

    python -m kdjax train --config configs/camvid_pspnet_r18_pfs.py --workdir runs/camvid_pfs

Pixel-wise feature similarities and gap-weighted soft predictions (Shan 2019, our reading).
Train the teacher first: configs/camvid_pspnet_r18_teacher.py.
"""

from kdjax import recipes
from kdjax.config import Config


def get_config() -> Config:
    """Returns the config."""
    return recipes.teach(recipes.camvid(), "pfs", teacher="runs/camvid_teacher")
