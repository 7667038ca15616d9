"""Your own photos: chooses crop size, steps, and padding from the images in the prepared folder.

    pip install "kdjax[weights]"
    python -m kdjax prepare folder --source DIR --data_dir data/mine
    python -m kdjax compare --config configs/photos.py:data/mine --workdir runs/mine
    python -m kdjax export --source runs/mine/dist/seed0 --output student --format tflite \\
        --height 480 --width 640

With additional photos without labels, on which the student is also distilled:

    python -m kdjax prepare folder --source MORE --data_dir data/more --unlabelled
    python -m kdjax compare --config configs/photos.py:data/mine,data/more --workdir runs/mine

docs/data.md, "My own photos", describes DIR. A light feature pyramid on EfficientNet-Lite2 teaches
one on Lite0, both from ImageNet weights, by DIST, and with unlabeled photos also by CWD. The log
gives each choice and its reason. You can override any of them, for example with
--config.steps=2000.
"""

from kdjax import recipes
from kdjax.config import Config, extra_set
from kdjax.data import sets
from kdjax.utils.classes import UNLABELLED
from kdjax.utils.errors import UserError
from kdjax.utils.log import RunLogger


def get_config(argument: str) -> Config:
    """Returns the config for the data set `folder` in a data directory.

    Args:
      argument: the data directory; optionally, after a comma, another one with unlabeled photos.
    """
    data_dir, _, unlabeled_dir = argument.partition(",")
    log = RunLogger("photos")
    photos = sets.open_set("folder", data_dir, asked_by="the argument of photos.py")
    if photos.class_names == (UNLABELLED,):
        raise UserError(
            f"photos.py: the images in {data_dir} have no labels; name it second, after a "
            f"directory with labels: photos.py:DATA_DIR,{data_dir}; or train with a teacher of "
            f"your own, from_teacher.py:{data_dir},TEACHER"
        )
    recipes.require_splits(photos, "photos.py", data_dir, "--val_share 0.2")
    config = recipes.fine_tune(
        recipes.default(),
        teacher="fpn_light_efficientnet_lite2",
        student="fpn_light_efficientnet_lite0",
    )
    recipes.fit_to_photos(config, photos, data_dir, log)
    labeled = len(photos.records("train"))
    unlabeled = _add_unlabeled(config, unlabeled_dir, labeled, log)
    config.compare.teacher_steps = recipes.photo_steps(labeled, config)
    recipes.choose_steps(config, labeled + unlabeled, log)
    log.info(
        "unless --config.compare.teacher_steps overrides it, the teacher trains for "
        f"{config.compare.teacher_steps} steps"
    )
    log.info("networks: EfficientNet-Lite2 teaches Lite0, both with fpn_light and from ImageNet")
    # The best on labeled photos, and with few labels: docs/results/README.md.
    methods = ("plain", "dist", "cwd") if unlabeled else ("plain", "dist")
    log.info(
        f"methods: {', '.join(methods[1:])}, the best on CamVid for students from noise; from "
        "ImageNet weights the plain student was at least as good, so deploy the best of your table"
    )
    return recipes.compare_methods(config, methods)


def _add_unlabeled(config: Config, data_dir: str, labeled: int, log: RunLogger) -> int:
    """Adds the unlabeled photos of a directory to the mixture, and returns their number."""
    if not data_dir:
        return 0
    more = sets.open_set("folder", data_dir, asked_by="the argument of photos.py")
    count = more.splits["train"]
    config.data.weight = max(1, round(labeled / count))
    with config.unlocked():
        config.data.mixture.more = extra_set("folder", data_dir=data_dir, labelled=False)
    log.info(
        f"{count} unlabeled images in {data_dir} are one in {config.data.weight + 1} of the images "
        "that distilled students see: in proportion, but at most half, because cross-entropy needs "
        "labels in every batch; the teacher and the plain student see only labeled images"
    )
    return count
