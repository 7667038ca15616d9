"""Procedural shapes of which 40 have labels, and 800 teach: what images without labels are worth.

    python -m kdjax compare --config configs/shapes_few_labels.py --workdir runs/few
    python -m kdjax compare --config configs/shapes_few_labels.py:labelled \\
        --workdir runs/few_alone --config.teacher.checkpoint=runs/few/teacher

The second has the same teacher and the 40 alone. Results: docs/results/few_labels.md.
"""

from kdjax import recipes
from kdjax.config import Config, extra_set
from kdjax.data import Dataset, sets

LABELLED = 40


def few(data_dir: str) -> Dataset:
    """Shapes with the first few of their images to train on."""
    shapes = sets.open_set("shapes", data_dir)
    splits = {
        split: list(shapes.records(split).decoded(range(LABELLED if split == "train" else count)))
        for split, count in shapes.splits.items()
    }
    return Dataset(splits, shapes.class_names, palette=shapes.palette, name="few shapes")


def get_config(images: str = "all") -> Config:
    """Returns the config; "labelled" leaves out the images without labels."""
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
