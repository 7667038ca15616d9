"""A fair comparison in half an hour: the four papers on procedural shapes, tuned, three seeds.

    python -m kdjax compare --config configs/shapes_pspnet_r18_tuned.py --parallel 2 \\
        --workdir runs/shapes_tuned

The plain student's learning rate is picked first, then a factor of each method's weights, both on
validation in runs with a separate seed. Results: docs/results/shapes.md.
"""

from kdjax import recipes
from kdjax.config import Config

METHODS = ("plain", "pixelwise_kl", "cwd", "nfd", "pfs", "fakd")


def get_config() -> Config:
    """Returns the config."""
    config = recipes.shapes()
    config.compare.learning_rates = (0.2, 0.4, 0.8)
    config.compare.weight_factors = (0.3, 1.0, 3.0)
    config.compare.tuning_seeds = (1000,)
    config.compare.seeds = (0, 1, 2)
    return recipes.compare_methods(config, METHODS)
