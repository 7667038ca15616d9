"""Cityscapes, VOC 2012, ADE20K, Pascal Context, and COCO-Stuff: `published.py:SET,PAIR,METHOD`.

    python -m kdjax train --workdir runs/cwd \\
        --config configs/published.py:cityscapes,pspnet_r101_r18,cwd
    python -m kdjax compare --workdir runs/compared \\
        --config configs/published.py:cityscapes,pspnet_r101_r18,plain
    python -m kdjax train --workdir teachers/voc2012_segformer_b4 \\
        --config configs/published.py:voc2012,segformer_b4_b0,teacher

docs/recipes.md lists SET, PAIR, the schedules, and the source of each teacher. METHOD is `plain`, a
method of `kdjax.recipes.METHODS`, "package.module:attribute", or `teacher`, which trains the pair's
teacher. With the schedule and weight of the first command, mmrazor's model zoo lists 79.76 mIoU for
the teacher, 74.87 for the plain student, and 75.54 for CWD.
"""

from kdjax import recipes
from kdjax.config import Config
from kdjax.utils.errors import UserError


def get_config(recipe: str = "") -> Config:
    """Returns the config of a recipe, given as "SET,PAIR,METHOD"."""
    match recipe.split(","):
        case [data, pair, method]:
            return recipes.published(data, pair, method)
    said = f'"{recipe}" is no recipe' if recipe else "no recipe is named"
    raise UserError(
        f"{said}; give SET,PAIR,METHOD, as in published.py:cityscapes,pspnet_r101_r18,cwd; "
        f"SET is one of {', '.join(recipes.TRAININGS)}; PAIR of {', '.join(recipes.PAIRS)}; "
        f"METHOD of {', '.join(recipes.METHODS)}, {recipes.TEACHER}"
    )
