"""Procedural shapes of which 40 of 800 have labels: measures the gain from unlabeled images.

    python -m kdjax compare --config configs/shapes_few_labels.py --workdir runs/few
    python -m kdjax compare --config configs/shapes_few_labels.py:labelled \\
        --workdir runs/few_alone --config.teacher.checkpoint=runs/few/teacher

The second command uses the same teacher and only the 40 images. Results:
docs/results/few_labels.md.
"""

from kdjax import recipes
from kdjax.config import Config, extra_set
from kdjax.data import Dataset, sets

LABELLED = 40


def few(data_dir: str) -> Dataset:
    """Returns `shapes` with only the first few of its training images."""
    shapes = sets.open_set("shapes", data_dir)
    splits = {
        split: list(shapes.records(split).decoded(range(LABELLED if split == "train" else count)))
        for split, count in shapes.splits.items()
    }
    return Dataset(splits, shapes.class_names, palette=shapes.palette, name="few shapes")


def get_config(images: str = "all") -> Config:
    """Returns the config. "labelled" leaves out the unlabeled images."""
    config = recipes.shapes()
    config.steps, config.eval_every = 400, 400
    config.compare.teacher_steps = 600
    config.compare.seeds = (0, 1)
    config.data.name = "shapes_few_labels:few"
    if images == "labelled":
        return recipes.compare_methods(config, ("cwd",))
    with config.unlocked():
        config.data.mixture.all = extra_set("shapes", labelled=False)
    return recipes.compare_methods(config, ("plain", "cwd"))
