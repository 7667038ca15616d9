"""Losses as a user writes them, in a module of their own."""

import jax
import jax.numpy as jnp

from kdjax import distillation


def cosine(student, teacher, *, power=2.0):
    """One minus the cosine of each pixel's features, to a power."""
    norms = jnp.linalg.norm(student, axis=-1) * jnp.linalg.norm(teacher, axis=-1)
    return (1 - jnp.sum(student * teacher, axis=-1) / norms) ** power


def labeled_distance(student, teacher, labels, *, ignore_label=255):
    """The squared distance of labeled pixels."""
    distance = jnp.mean(jnp.square(student - teacher), axis=-1)
    return jnp.where(labels == ignore_label, 0.0, distance)


def no_student(prediction, target):
    """A function that is no loss."""
    return prediction - target


class Masked(distillation.Loss):
    """The teacher's features from a share of the student's; it counts its steps."""

    student: str | tuple[str, ...] = "stage4"
    teacher: str | tuple[str, ...] = "stage4"
    weight: float = 7.0
    masked: float = 0.5

    def init_params(self, key, student, teacher):
        return {"kernel": 0.1 * jax.random.normal(key, (student.channels, teacher.channels))}

    def init_state(self, student, teacher):
        return {"steps": jnp.zeros((), jnp.int32)}

    def update(self, state, inputs):
        return {"steps": state["steps"] + 1}

    def __call__(self, inputs, params, state):
        kept = jax.random.bernoulli(inputs.key, 1 - self.masked, inputs.student.shape[:3])
        made = (inputs.student * kept[..., None]) @ params["kernel"]
        return jnp.mean(jnp.square(made - inputs.teacher)), {"steps": state["steps"]}


class Attention(distillation.Loss):
    """Where each of several stages is active."""

    student = ("stage3", "stage4")
    teacher = ("stage3", "stage4")
    adapter = "never"

    def __call__(self, inputs, params, state):
        total = jnp.zeros(())
        for ours, theirs in zip(inputs.student, inputs.teacher, strict=True):
            maps = [jnp.mean(jnp.square(x), axis=-1) for x in (ours, theirs)]
            maps = [x / jnp.linalg.norm(x, axis=(1, 2), keepdims=True) for x in maps]
            total += jnp.mean(jnp.square(maps[0] - maps[1]))
        return total


class NeedsLargeMaps(distillation.Loss):
    """A loss with a condition of its own."""

    def check(self, student, teacher):
        if min(student.size) < 32:
            raise ValueError(f"needs maps of 32 pixels or more, got {student.size}")

    def __call__(self, inputs, params, state):
        return jnp.mean(inputs.student)


class Fails(distillation.Loss):
    """A loss with a mistake in it."""

    def __call__(self, inputs, params, state):
        return inputs.student["logits"]


class NotReduced(distillation.Loss):
    """A loss that forgets its mean."""

    def __call__(self, inputs, params, state):
        return inputs.student - inputs.teacher


class Complex(distillation.Loss):
    """A loss that forgets to take the magnitude of a spectrum."""

    logged: bool = False

    def __call__(self, inputs, params, state):
        value = jnp.mean(jnp.fft.fft2(inputs.student, axes=(1, 2)))
        return (jnp.mean(inputs.student), {"spectrum": value}) if self.logged else value


METHOD = {"mine": distillation.term("own_losses:Masked", weight=2.0)}
