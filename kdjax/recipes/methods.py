"""The methods of distillation by name, as recipes use them."""

import types
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from kdjax import names
from kdjax.config import Config, term
from kdjax.names import SEPARATOR

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

# As the names of anybody else's, these say where to import from.
built_in = types.SimpleNamespace(**METHODS)
_NAMES = {name: f"{__name__}{SEPARATOR}built_in.{name}" for name in METHODS}

# A method that is another one with something added or weighted: its own effect is what it gains
# over that one, and not what both gain over the plain student.
BUILDS_ON = {
    "pfs_predictions": "pixelwise_kl",
    "fakd": "pixelwise_kl",
    "fakd_strong": "pixelwise_kl",
    "fakd_cwd": "cwd",
}


def compare_methods(config: Config, methods: Iterable[str] = METHODS) -> Config:
    """Has a config compare methods, each also with the one that it builds on.

    Args:
      config: the recipe of the students.
      methods: names in `METHODS`, among them "plain", or "package.module:attribute" of terms by
        name, whose method is then called as the attribute.
    """
    found = {name.replace(SEPARATOR, ".").rpartition(".")[2]: terms_of(name) for name in methods}
    with config.unlocked():
        config.compare.methods = ConfigDict(found)
        config.compare.builds_on = ConfigDict(
            {name: base for name, base in BUILDS_ON.items() if {name, base} <= found.keys()}
        )
    return config


def teach(config: Config, method: str, teacher: str) -> Config:
    """Makes the recipe of a plain student one with a method.

    Args:
      config: the recipe.
      method: a name as `compare_methods` takes it.
      teacher: the teacher's workdir or network checkpoint.
    """
    with config.unlocked():
        config.terms = ConfigDict(terms_of(method))
    config.teacher.checkpoint = teacher
    return config


def terms_of(method: str) -> dict[str, dict[str, Any]]:
    """The terms of a method, by a name as `compare_methods` takes it."""
    return names.resolve("method", method, _NAMES, asked_by="the recipe")
