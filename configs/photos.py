"""Your own photos: chooses crop size, steps, and padding from the images in the prepared folder.

    pip install "kdjax[weights]"
    python -m kdjax prepare folder --source DIR --data_dir data/mine
    python -m kdjax compare --config configs/photos.py:data/mine --workdir runs/mine
    python -m kdjax export --source runs/mine/cwd/seed0 --output student --format tflite \\
        --height 480 --width 640

With additional photos without labels, on which the student is also distilled:

    python -m kdjax prepare folder --source MORE --data_dir data/more --unlabelled
    python -m kdjax compare --config configs/photos.py:data/mine,data/more --workdir runs/mine

docs/data.md, "My own photos", describes DIR. A light feature pyramid on EfficientNet-Lite2 teaches
one on Lite0, both from ImageNet weights. The log gives each choice and its reason. You can override
any of them, for example with --config.steps=2000.
"""

import statistics

from kdjax import recipes
from kdjax.config import Config, extra_set
from kdjax.data import sets
from kdjax.utils.classes import UNLABELLED
from kdjax.utils.errors import UserError
from kdjax.utils.log import RunLogger

BATCH_SIZE = 8
EPOCHS = 25
STEPS = (600, 20_000)  # with fewer steps the warm-up is too large a part of the run
LARGEST_CROP = 384
LARGE = 1024  # if a side is longer, the log recommends to make the images smaller


def get_config(argument: str) -> Config:
    """Returns the config for the data set `folder` in a data directory.

    Args:
      argument: the data directory; optionally, after a comma, another one with unlabeled photos.
    """
    data_dir, _, unlabelled_dir = argument.partition(",")
    log = RunLogger("photos")
    photos = sets.open_set("folder", data_dir, asked_by="the argument of photos.py")
    splits, classes = photos.splits, len(photos.class_names)
    if photos.class_names == (UNLABELLED,):
        raise UserError(
            f"photos.py: the images in {data_dir} have no labels; name it second, after a "
            f"directory with labels: photos.py:DATA_DIR,{data_dir}"
        )
    if absent := {"train", "val"} - splits.keys():
        raise UserError(
            f"photos.py: {data_dir} has no split {absent.pop()}; prepare it with --val_share 0.2"
        )
    config = recipes.fine_tune(
        recipes.default(),
        teacher="fpn_light_efficientnet_lite2",
        student="fpn_light_efficientnet_lite0",
    )
    config.data.name, config.data.data_dir = "folder", data_dir
    config.data.test_split = "test" if "test" in splits else ""
    config.data.batch_size = min(BATCH_SIZE, splits["train"])
    sizes = photos.records("train").sizes(range(splits["train"]))
    height, width = (round(statistics.median(side)) for side in zip(*sizes, strict=True))
    log.info(
        f"{splits['train']} images to train on and {splits['val']} to validate, {classes} classes, "
        f"mostly {width} x {height} pixels"
    )

    config.data.crop_size = tuple(
        max(32, min(side, LARGEST_CROP) // 32 * 32) for side in (height, width)
    )
    log.info(
        "unless --config.data.crop_size overrides it, crops of {1} x {0}: the image size in whole "
        "multiples of 32, at most {2}".format(*config.data.crop_size, LARGEST_CROP)
    )
    if max(height, width) > LARGE:
        log.info(
            f"the images are large: if the labeled objects are still visible at {LARGE} pixels, "
            "make images and labels smaller (labels by nearest neighbor) and prepare them again"
        )

    unlabelled = _add_unlabelled(config, unlabelled_dir, splits["train"], log)
    config.compare.teacher_steps = _steps(splits["train"], config)
    config.steps = _steps(splits["train"] + unlabelled, config)
    config.eval_every = max(100, config.steps // 4)
    log.info(
        f"unless --config.steps overrides it, {config.steps} steps of {config.data.batch_size} "
        f"images: {EPOCHS} times through all images, but {STEPS[0]} to {STEPS[1]} steps"
    )
    log.info(
        "unless --config.compare.teacher_steps overrides it, the teacher trains for "
        f"{config.compare.teacher_steps} steps"
    )

    # Compiling one shape takes longer than evaluating hundreds of images.
    evaluated = [
        size
        for split in splits.keys() - {"train"}
        for size in photos.records(split).sizes(range(splits[split]))
    ]
    if (shapes := len(set(evaluated))) > 2:
        longest = max(map(max, evaluated))
        config.data.eval_pad_to = -(-longest // 32) * 32
        log.info(
            "unless --config.data.eval_pad_to overrides it, whole images are padded to "
            f"{config.data.eval_pad_to} pixels, because each of their {shapes} shapes would be "
            "compiled"
        )
    log.info("networks: EfficientNet-Lite2 teaches Lite0, both with fpn_light and from ImageNet")
    methods = ("plain", "pixelwise_kl", "cwd") if unlabelled else ("plain", "cwd")
    return recipes.compare_methods(config, methods)


def _add_unlabelled(config: Config, data_dir: str, labelled: int, log: RunLogger) -> int:
    """Adds the unlabeled photos of a directory to the mixture, and returns their number."""
    if not data_dir:
        return 0
    more = sets.open_set("folder", data_dir, asked_by="the argument of photos.py")
    count = more.splits["train"]
    config.data.weight = max(1, round(labelled / count))
    with config.unlocked():
        config.data.mixture.more = extra_set("folder", data_dir=data_dir, labelled=False)
    log.info(
        f"{count} unlabeled images in {data_dir} are one in {config.data.weight + 1} of the images "
        "that distilled students see: in proportion, but at most half, because cross-entropy needs "
        "labels in every batch; the teacher and the plain student see only labeled images"
    )
    return count


def _steps(images: int, config: Config) -> int:
    return min(max(round(EPOCHS * images / config.data.batch_size), STEPS[0]), STEPS[1])
