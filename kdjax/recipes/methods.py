"""The methods of distillation by name, as recipes use them."""

from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from kdjax.config import Config, term
from kdjax.errors import UserError
from kdjax.suggest import nearest

# Each method alone, on top of cross-entropy, with the weights of its paper or of its authors' code;
# where neither is known (NFD, PFS, FAKD), with those that `kdjax.distillation.builtin` explains.
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


# A method that is another one with something added or weighted: its own effect is what it gains
# over that one, and not what both gain over the plain student.
BUILDS_ON = {
    "pfs_predictions": "pixelwise_kl",
    "fakd": "pixelwise_kl",
    "fakd_strong": "pixelwise_kl",
    "fakd_cwd": "cwd",
}


def compare_methods(config: Config, names: Iterable[str] = METHODS) -> Config:
    """Has a config compare methods of `METHODS`, each also with the one that it builds on.

    Args:
      config: the recipe of the students.
      names: of the methods, among them "plain".
    """
    methods = {name: _terms(name) for name in names}
    with config.unlocked():
        config.compare.methods = ConfigDict(methods)
        config.compare.builds_on = ConfigDict(
            {name: base for name, base in BUILDS_ON.items() if {name, base} <= methods.keys()}
        )
    return config


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


def _terms(method: str) -> dict[str, dict[str, Any]]:
    if method not in METHODS:
        raise UserError(f'unknown method "{method}": {nearest(method, METHODS)}')
    return METHODS[method]
