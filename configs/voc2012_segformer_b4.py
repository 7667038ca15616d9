"""VOC 2012: SegFormer-B4, the teacher of the recipes voc2012_segformer_b4_b0.

    python -m kdjax.train --config configs/voc2012_segformer_b4.py \\
        --workdir teachers/voc2012_segformer_b4

mmsegmentation publishes none for this set. Backbone, schedule and source: docs/recipes.md.
"""

from kdjax import recipes
from kdjax.config import Config


def get_config() -> Config:
    """Returns the config."""
    return recipes.published_teacher("voc2012", "segformer_b4_b0")
