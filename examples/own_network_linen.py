"""A network of your own in Flax Linen, as the student of a config.

    python -m kdjax train --config configs/shapes_pspnet_r18_teacher.py --workdir runs/teacher
    python -m kdjax train --config examples/own_network_linen.py --workdir runs/own_linen
    PYTHONPATH=examples python -m kdjax export --source runs/own_linen --output exported \\
        --format stablehlo

The config names the class in this module. A checkpoint contains the name and not the code, so later
commands must find the module too.
"""

import jax
from flax import linen as nn

from kdjax import recipes
from kdjax.config import Config, network, term


class UNet(nn.Module):
    """A network of two scales with a skip connection.

    Attributes:
      num_classes: passed by kdjax.
      channels: the channels of the finer scale, from `config.student.options`.
    """

    num_classes: int
    channels: int = 16

    @nn.compact
    def __call__(self, images, *, train):
        """Returns maps by name: "logits" are the class scores, and losses may read the others."""

        def block(x, channels, stride):
            x = nn.Conv(channels, (3, 3), (stride, stride), use_bias=False)(x)
            return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))

        fine = block(block(images, self.channels, 2), self.channels, 2)
        coarse = block(block(fine, 2 * self.channels, 2), 4 * self.channels, 1)
        coarse = nn.Dropout(0.1, deterministic=not train)(coarse)
        upward = jax.image.resize(coarse, (*fine.shape[:3], coarse.shape[-1]), "bilinear")
        head = block(jax.numpy.concatenate([fine, upward], axis=-1), 2 * self.channels, 1)
        logits = nn.Conv(self.num_classes, (1, 1))(head)
        return {"logits": logits, "head": head, "coarse": coarse}


def get_config() -> Config:
    """Returns the config: the quickstart's shapes, distilled from scores and features."""
    config = recipes.shapes()
    config.teacher.checkpoint = "runs/teacher"
    with config.unlocked():
        config.student.update(network("own_network_linen:UNet", channels=24))
        config.terms.cwd = term("cwd")
        config.terms.features = term("cwd", student="coarse", teacher="stage4", weight=1.0)
    return config
