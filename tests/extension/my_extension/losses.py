"""A loss as a function, and one that learns, remembers and draws random numbers."""

import jax
import jax.numpy as jnp

from kdjax import distillation


def distance(student, teacher, *, power=2.0):
    """How far maps are apart."""
    return jnp.abs(student - teacher) ** power


class Remembered(distillation.Loss):
    """The teacher's map, less what it mostly is, from a share of the student's."""

    student: str | tuple[str, ...] = "stage4"
    teacher: str | tuple[str, ...] = "stage4"
    adapter = "never"
    masked: float = 0.5
    momentum: float = 0.5

    def init_params(self, key, student, teacher):
        """One matrix from channels to channels."""
        return {"kernel": 0.1 * jax.random.normal(key, (student.channels, teacher.channels))}

    def init_state(self, student, teacher):
        """The moving mean of every channel."""
        del student
        return {"mean": jnp.zeros(teacher.channels)}

    def update(self, state, inputs):
        """The mean with that of this batch in it."""
        mean = jnp.mean(inputs.teacher, axis=(0, 1, 2))
        return {"mean": self.momentum * state["mean"] + (1 - self.momentum) * mean}

    def __call__(self, inputs, params, state):
        """The mean squared error; logs what is remembered."""
        kept = jax.random.bernoulli(inputs.key, 1 - self.masked, inputs.student.shape[:3])
        made = (inputs.student * kept[..., None]) @ params["kernel"]
        error = jnp.mean(jnp.square(made - (inputs.teacher - state["mean"])))
        return error, {"remembered": jnp.mean(state["mean"])}
