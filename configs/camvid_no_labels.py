"""CamVid without labels: a teacher's ONNX file teaches EfficientNet-Lite0 on photos alone.

    python -m kdjax export --source runs/camvid_lite2 --output runs/camvid_onnx --format onnx \\
        --returned scores --height 180 --width 240
    python -m kdjax prepare folder --unlabelled --source PHOTOS --data_dir data/camvid_photos
    python -m kdjax train --config configs/camvid_no_labels.py --workdir runs/no_labels/seed0 \\
        --config.seed=0
    python -m kdjax evaluate --workdir runs/no_labels/seed0 --data_dir data/camvid --split test

runs/camvid_lite2 is the teacher of configs/camvid_lite.py. PHOTOS has CamVid's images of training
and validation in `images/train` and `images/val`, without labels. The networks and rates are those
of the students with labels in camvid_lite.py:lite0_cached, in twice as many steps. DIST agrees with
the teacher more than pixelwise KL does (docs/results/no_labels.md).
"""

from kdjax import recipes
from kdjax.config import Config

STUDENT = "fpn_light_efficientnet_lite0"


def get_config() -> Config:
    """Returns the config."""
    config = recipes.fine_tune(recipes.camvid(), teacher=STUDENT, student=STUDENT)
    config.teacher.name = config.teacher.backbone = ""
    config.steps, config.eval_every = 1200, 400
    config.data.data_dir, config.data.test_split = "data/camvid_photos", ""
    config.teacher.cache = "caches/camvid_onnx"
    with config.unlocked():
        config.data.test_groups = {}
    return recipes.teach_without_labels(config, "runs/camvid_onnx/student.onnx")
