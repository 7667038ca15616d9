"""Cityscapes, VOC 2012, ADE20K, Pascal Context and COCO-Stuff: `published.py:SET,PAIR,METHOD`.

    python -m kdjax train --workdir runs/cwd \\
        --config configs/published.py:cityscapes,pspnet_r101_r18,cwd
    python -m kdjax compare --workdir runs/compared \\
        --config configs/published.py:cityscapes,pspnet_r101_r18,plain
    python -m kdjax train --workdir teachers/voc2012_segformer_b4 \\
        --config configs/published.py:voc2012,segformer_b4_b0,teacher

SET and PAIR, the schedules and where each teacher comes from: docs/recipes.md. METHOD is plain, any
method of `kdjax.recipes.METHODS` or "package.module:attribute", or teacher, which trains the pair's
teacher. mmrazor's model zoo, by the schedule and weight of the first command: teacher 79.76, plain
74.87, CWD 75.54 mIoU.
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
