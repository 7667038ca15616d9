"""Nine methods on procedural shapes, three seeds each: a PSPNet-R18 of width 16 teaches width 8.

    python -m kdjax compare --config configs/shapes_pspnet_r18.py --workdir runs/shapes

Results: docs/results/shapes.md.
"""

from kdjax import recipes
from kdjax.config import Config

METHODS = (
    "plain",
    "pixelwise_kl",
    "cwd",
    "cwd_features",
    "nfd",
    "pfs_similarities",
    "pfs_predictions",
    "fakd",
    "fakd_cwd",
    "skd_pairwise",
)


def get_config() -> Config:
    """Returns the config."""
    config = recipes.shapes()
    config.compare.seeds = (0, 1, 2)
    return recipes.compare_methods(config, METHODS)
