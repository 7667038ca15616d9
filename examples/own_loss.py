"""Two losses of your own, as terms: a function, and a class that learns and draws random numbers.

    python -m kdjax train --config configs/shapes_pspnet_r18_teacher.py --workdir runs/teacher
    python -m kdjax train --config examples/own_loss.py --workdir runs/own_loss

The config names its losses by this module, which is found because it lies beside the config: here
it is the config itself. Elsewhere, set PYTHONPATH to its folder.
"""

import jax
import jax.numpy as jnp

from kdjax import distillation, recipes
from kdjax.config import Config, term


def hint(student, teacher, *, power=2.0):
    """How far features are apart: the plain mean of what is returned is the term."""
    return jnp.abs(student - teacher) ** power


class MGD(distillation.Loss):
    """Masked generative distillation (Yang et al. 2022), our reading of the authors' code.

    A generator makes the teacher's features from those of the student, of which a share of the
    pixels is masked. The authors' weight of 2e-5 on a sum is 168 on this mean at their size.
    """

    student: str | tuple[str, ...] = "stage4"
    teacher: str | tuple[str, ...] = "stage4"
    weight: float = 168.0
    masked: float = 0.75

    def init_params(self, key, student, teacher):
        """Two 3x3 convolutions of the teacher's channels, drawn after He et al. 2015."""
        del student
        shape = (3, 3, teacher.channels, teacher.channels)
        initialize = jax.nn.initializers.he_normal()
        first, second = (initialize(k, shape, jnp.float32) for k in jax.random.split(key))
        return {"first": first, "second": second}

    def __call__(self, inputs, params, state):
        """The mean squared error of the generated features; logs the share that was kept."""
        del state
        kept = jax.random.bernoulli(inputs.key, 1 - self.masked, inputs.student.shape[:3])
        x = inputs.student * kept[..., None]
        x = _convolve(jax.nn.relu(_convolve(x, params["first"])), params["second"])
        return jnp.mean(jnp.square(x - inputs.teacher)), {"kept": jnp.mean(kept)}


def _convolve(x, kernel):
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)


def get_config() -> Config:
    """The shapes of the quickstart, with both as terms."""
    config = recipes.shapes()
    config.teacher.checkpoint = "runs/teacher"
    with config.unlocked():
        # By name, so that every process and every later command finds them.
        config.terms.hint = term("own_loss:hint", student="head", teacher="head", weight=0.1)
        config.terms.mgd = term("own_loss:MGD", weight=1.0)
    return config
