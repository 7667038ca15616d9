"""What the files in `configs/` share: data sets with networks and schedules, and the methods."""

from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from kdjax.config import Config, default, network, term
from kdjax.errors import UserError
from kdjax.suggest import nearest

# Each method alone, on top of cross-entropy, with the weights of its paper or of its authors' code;
# where neither is known (NFD, PFS, FAKD), with those that `kdjax.distillation.catalogue` explains.
METHODS: dict[str, dict[str, dict[str, Any]]] = {
    "plain": {},
    "pixelwise_kl": {"pixelwise_kl": term("pixelwise_kl")},
    # Shu et al. 2021: on the class scores, and on the features after the pyramid.
    "cwd": {"cwd": term("cwd")},
    "cwd_features": {"cwd": term("cwd", student="head", teacher="head", weight=50.0)},
    # Liu et al. 2022.
    "nfd": {"nfd": term("nfd")},
    # Shan 2019: both halves, and each by itself.
    "pfs": {"similarities": term("pfs"), "predictions": term("gap_weighted_kl")},
    "pfs_similarities": {"similarities": term("pfs")},
    "pfs_predictions": {"predictions": term("gap_weighted_kl")},
    # Yuan et al. 2022, on per-pixel KL (also at ISDA's strength) and on CWD.
    "fakd": {"fakd": term("fakd_kl")},
    "fakd_strong": {"fakd": term("fakd_kl", strength=7.5)},
    "fakd_cwd": {"fakd": term("fakd_cwd")},
    # Liu et al. 2019, for comparison.
    "skd_pairwise": {"skd_pairwise": term("skd_pairwise")},
}


def methods(names: Iterable[str] = METHODS) -> ConfigDict:
    """Methods by name, as `config.compare.methods` holds them."""
    return ConfigDict({name: _terms(name) for name in names})


def teach(config: Config, method: str, teacher: str) -> Config:
    """Makes the recipe of a plain student one with a method of `METHODS`.

    Args:
      config: the recipe.
      method: its name.
      teacher: the teacher's workdir or network checkpoint.
    """
    with config.unlocked():
        config.terms = ConfigDict(_terms(method))
    config.teacher.checkpoint = teacher
    return config


def teacher_of(config: Config) -> Config:
    """The recipe of the network that teaches in `config`, as `kdjax.compare` trains it."""
    for key in ("name", "width", "dtype"):
        config.student[key] = config.teacher[key]
    config.teacher.name = ""
    config.steps = config.compare.teacher_steps
    config.optimizer.learning_rate = config.compare.teacher_learning_rate
    return config


def _terms(method: str) -> dict[str, dict[str, Any]]:
    if method not in METHODS:
        raise UserError(f'unknown method "{method}": {nearest(method, METHODS)}')
    return METHODS[method]


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
