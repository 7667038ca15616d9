"""COCO-Stuff: SegFormer-B4, the teacher of the recipes coco_stuff_segformer_b4_b0.

    python -m kdjax.train --config configs/coco_stuff_segformer_b4.py \\
        --workdir teachers/coco_stuff_segformer_b4

mmsegmentation publishes none for this set. Backbone, schedule and source: docs/recipes.md.
"""

from kdjax import recipes
from kdjax.config import Config


def get_config() -> Config:
    """Returns the config."""
    return recipes.published_teacher("coco_stuff", "segformer_b4_b0")
