"""Two losses of your own, as terms: a function, and a class that learns and draws random numbers.

    python -m kdjax train --config configs/shapes_pspnet_r18_teacher.py --workdir runs/teacher
    python -m kdjax train --config examples/own_loss.py --workdir runs/own_loss

The config names the losses in this module. kdjax finds modules next to the config, and here the
module is the config itself. Elsewhere, set PYTHONPATH to the module's folder.
"""

import jax
import jax.numpy as jnp

from kdjax import distillation, recipes
from kdjax.config import Config, term


def hint(student, teacher, *, power=2.0):
    """Returns the distance of the features. Its plain mean is the term."""
    return jnp.abs(student - teacher) ** power


class MGD(distillation.Loss):
    """Masked generative distillation (Yang et al. 2022), our reading of the authors' code.

    A generator produces the teacher's features from the student's, with a share of the pixels
    masked. The authors' weight of 2e-5 on a sum is 168 on this mean at their size.
    """

    student: str | tuple[str, ...] = "stage4"
    teacher: str | tuple[str, ...] = "stage4"
    weight: float = 168.0
    masked: float = 0.75

    def init_params(self, key, student, teacher):
        """Returns two 3x3 kernels of the teacher's channels, initialized as in He et al. 2015."""
        del student
        shape = (3, 3, teacher.channels, teacher.channels)
        initialize = jax.nn.initializers.he_normal()
        first, second = (initialize(k, shape, jnp.float32) for k in jax.random.split(key))
        return {"first": first, "second": second}

    def __call__(self, inputs, params, state):
        """Returns the mean squared error of the generated features, and a metric to log."""
        del state
        kept = jax.random.bernoulli(inputs.key, 1 - self.masked, inputs.student.shape[:3])
        x = inputs.student * kept[..., None]
        x = _convolve(jax.nn.relu(_convolve(x, params["first"])), params["second"])
        return jnp.mean(jnp.square(x - inputs.teacher)), {"kept": jnp.mean(kept)}


def _convolve(x, kernel):
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)


def get_config() -> Config:
    """Returns the config: the quickstart's shapes, with both losses as terms."""
    config = recipes.shapes()
    config.teacher.checkpoint = "runs/teacher"
    with config.unlocked():
        # By name, so that every process and later command finds them.
        config.terms.hint = term("own_loss:hint", student="head", teacher="head", weight=0.1)
        config.terms.mgd = term("own_loss:MGD", weight=1.0)
    return config
