"""One's own photos: what it finds in the prepared folder decides crop, steps and padding.

    pip install "kdjax[weights]"
    python -m kdjax.prepare folder --source DIR --data_dir data/mine
    python -m kdjax.compare --config configs/photos.py:data/mine --workdir runs/mine
    python -m kdjax.export --source runs/mine/cwd/seed0 --output student --format tflite \\
        --height 480 --width 640

DIR as docs/data.md, "My own photos", has it. A DeepLabV3+ on EfficientNet-Lite2 teaches one on
Lite0, both from ImageNet. The log says what was chosen and why; any of it can be overridden, as by
--config.steps=2000.
"""

import statistics

from kdjax import recipes
from kdjax.config import Config
from kdjax.data import sets
from kdjax.errors import UserError
from kdjax.log import RunLogger

BATCH_SIZE = 8
EPOCHS = 25
STEPS = (600, 20_000)  # fewer do not end the warm-up's effect; more is a matter of patience
LARGEST_CROP = 384
LARGE = 1024  # a side beyond which images are better made smaller first


def get_config(data_dir: str) -> Config:
    """Returns the config for the set `folder` that is prepared in a directory."""
    log = RunLogger("photos")
    photos = sets.open_set("folder", data_dir, asked_by="the argument of photos.py")
    splits, classes = photos.splits, len(photos.class_names)
    if absent := {"train", "val"} - splits.keys():
        raise UserError(
            f"photos.py: {data_dir} has no split {absent.pop()}; prepare it with --val_share 0.2"
        )
    config = recipes.fine_tune(
        recipes.default(),
        teacher="deeplabv3plus_light_efficientnet_lite2",
        student="deeplabv3plus_light_efficientnet_lite0",
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
        "crops of {1} x {0}: as much of an image as multiples of 32 hold, {2} at most".format(
            *config.data.crop_size, LARGEST_CROP
        )
    )
    if max(height, width) > LARGE:
        log.info(
            f"these are large: where what is labelled can still be told in images of {LARGE} "
            "pixels, make images and labels (these by nearest neighbour) smaller and prepare anew"
        )

    steps = round(EPOCHS * splits["train"] / config.data.batch_size)
    config.steps = min(max(steps, STEPS[0]), STEPS[1])
    config.compare.teacher_steps = config.steps
    config.eval_every = max(100, config.steps // 4)
    log.info(
        f"{config.steps} steps of {config.data.batch_size} images: {EPOCHS} times through them, "
        f"but {STEPS[0]} to {STEPS[1]}; the teacher as many"
    )

    # Each shape is compiled once, which takes longer than evaluating hundreds of images.
    evaluated = [
        size
        for split in splits.keys() - {"train"}
        for size in photos.records(split).sizes(range(splits[split]))
    ]
    if (shapes := len(set(evaluated))) > 2:
        longest = max(map(max, evaluated))
        config.data.eval_pad_to = -(-longest // 32) * 32
        log.info(
            f"whole images are padded to {config.data.eval_pad_to} pixels, since each of their "
            f"{shapes} shapes would be compiled"
        )
    log.info("networks: DeepLabV3+ on EfficientNet-Lite2 teaches one on Lite0, both from ImageNet")
    return recipes.compare_methods(config, ("plain", "cwd"))
