"""Several teachers as one, for any method: an object that supplies its trained variables.

    python -m kdjax train --config configs/shapes_pspnet_r18_teacher.py --workdir runs/teacher
    python -m kdjax train --config configs/shapes_pspnet_r18_teacher.py --workdir runs/teacher2 \\
        --config.seed=1
    python -m kdjax train --config examples/ensemble_of_teachers.py --workdir runs/from_two

`config.teacher.checkpoint` names the function `ensemble` below instead of a path. To score the
ensemble, pass the same name to `--checkpoint` of `kdjax evaluate`. A network of another framework
works in the same way, with `jax.pure_callback` in its `apply`.
"""

import os

import jax
import jax.numpy as jnp

from kdjax import recipes
from kdjax.config import Config, term
from kdjax.models import scores_of, serialization

# The environment variable TEACHERS names other teachers.
TEACHERS = os.environ.get("TEACHERS", "runs/teacher:runs/teacher2").split(":")


class Ensemble:
    """The mean of the class probabilities of several networks, as one network.

    Args:
      paths: network checkpoints, or workdirs of finished runs, with the same classes and the same
        preprocessing.
    """

    def __init__(self, paths):
        self._networks, self._variables, infos = zip(*map(serialization.load, paths), strict=True)
        self.preprocessing = infos[0].preprocessing
        self.class_names = infos[0].class_names
        if any(info.preprocessing != self.preprocessing for info in infos):
            raise ValueError("the teachers' images are normalized differently")

    def init(self, key, images):
        """Returns the trained variables instead of random ones."""
        del key, images
        return {"params": {}, "state": list(self._variables)}

    def apply(self, variables, images, *, train, key):
        """Returns the logarithm of the mean probabilities, so that a softmax returns the mean."""
        del train, key
        logits = [
            scores_of(network.apply(own, images, train=False, key=None)[0])
            for network, own in zip(self._networks, variables["state"], strict=True)
        ]
        mean = jax.nn.logsumexp(jnp.stack([jax.nn.log_softmax(x) for x in logits]), axis=0)
        return mean - jnp.log(len(logits)), variables


def ensemble():
    """Returns the teacher that `config.teacher.checkpoint` names."""
    return Ensemble(TEACHERS)


def get_config() -> Config:
    """Returns the config: the quickstart's shapes, with both teachers."""
    config = recipes.shapes()
    config.teacher.name = ""  # the checkpoint describes the network
    config.teacher.checkpoint = "ensemble_of_teachers:ensemble"
    with config.unlocked():
        config.terms.cwd = term("cwd")
    return config
