"""Recipes for a CPU: narrow networks on small images, in minutes."""

from collections.abc import Iterable

from ml_collections import ConfigDict

from kdjax.config import Config, default, network
from kdjax.recipes.methods import compare_methods

# What configs/camvid_pspnet_r18.py picks on validation, where it is not a method's own weight.
CAMVID_WEIGHTS = {
    "pixelwise_kl": {"pixelwise_kl": {"weight": 3.0}},
    "cwd": {"cwd": {"weight": 9.0}},
    "pfs": {"similarities": {"weight": 30.0}, "predictions": {"weight": 3.0}},
    "pfs_similarities": {"similarities": {"weight": 3.0}},
    "pfs_predictions": {"predictions": {"weight": 3.0}},
    "fakd_cwd": {"fakd": {"weight": 9.0}},
    "skd_pairwise": {"skd_pairwise": {"weight": 0.15}},
}


def shapes() -> Config:
    """Procedural scenes: a PSPNet-R18 of width 16 teaches one of width 8, in minutes on a CPU."""
    config = default()
    config.steps = 800
    config.eval_every = 200
    config.data.name = "shapes"
    config.data.test_split = "test"
    config.data.batch_size = 16
    config.data.eval_batch_size = 20
    config.data.crop_size = (64, 64)
    config.data.scale_range = (0.75, 1.5)
    config.data.photometric = False
    config.teacher.update(network("pspnet_r18", width=16))
    config.student.update(network("pspnet_r18", width=8))
    config.student.auxiliary = False
    config.optimizer.learning_rate = 0.4
    # At rates that suit the plain student, large terms throw students off without this.
    config.optimizer.gradient_clip = 1.0
    config.compare.teacher_steps = 1200
    config.compare.teacher_learning_rate = 0.4
    return config


def camvid() -> Config:
    """CamVid at 180 x 240: a PSPNet-R18 of width 32 teaches one of width 8.

    No auxiliary head and no weights from elsewhere. Only the sequence Seq05VD of the test split
    was never seen in training, so it is scored apart.
    """
    config = default()
    config.steps = 500
    config.eval_every = 400
    config.data.name = "folder"
    config.data.data_dir = "data/camvid"
    config.data.test_split = "test"
    config.data.batch_size = 8
    config.data.eval_batch_size = 16
    config.data.crop_size = (160, 208)
    config.data.photometric = False
    config.teacher.update(network("pspnet_r18", width=32))
    config.student.update(network("pspnet_r18", width=8))
    config.student.auxiliary = False
    config.loss.auxiliary = 0.0
    config.optimizer.learning_rate = 0.2
    # A distillation term adds several times the gradient of cross-entropy in the first steps.
    config.optimizer.gradient_clip = 1.0
    config.compare.seeds = (0, 1, 2)
    config.compare.teacher_steps = 1600
    config.compare.teacher_learning_rate = 0.1
    with config.unlocked():
        config.data.test_groups = ConfigDict({"unseen": "Seq05VD"})
    return config


def compare_camvid_methods(config: Config, names: Iterable[str]) -> Config:
    """As `recipes.compare_methods`, with the weights that were picked on CamVid."""
    methods = compare_methods(config, names).compare.methods
    methods.update({name: CAMVID_WEIGHTS[name] for name in methods if name in CAMVID_WEIGHTS})
    return config


def teacher_of(config: Config) -> Config:
    """The recipe of the network that teaches in `config`, as `kdjax.compare` trains it."""
    for key in ("name", "width", "dtype"):
        config.student[key] = config.teacher[key]
    config.teacher.name = ""
    config.steps = config.compare.teacher_steps
    config.optimizer.learning_rate = config.compare.teacher_learning_rate
    return config
