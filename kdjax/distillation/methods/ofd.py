"""OFD as a term."""

import math
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from kdjax.distillation.feature_maps import Spec
from kdjax.distillation.loss import Inputs, Loss, Metrics
from kdjax.distillation.terms import term
from kdjax.utils.schema import NOT_NEGATIVE, POSITIVE


class Margin(NamedTuple):
    """The mean of the negative values in each channel of a map.

    Attributes:
      mean: the means `[C]`, 0 for channels without negative values.
      seen: the number of negative values in each channel, `[C]`.
    """

    mean: Float[Array, " C"]
    seen: Float[Array, " C"]


class OFD(Loss):
    """A comprehensive overhaul of feature distillation: Heo et al. 2019.

    The targets are the teacher's maps before their ReLU, raised to a margin. If the target and the
    student are both below 0, and the student is not above the target, the loss is 0. The margin is
    the mean of a channel's negative values in all batches so far. Maps after a ReLU have none.

    Attributes:
      alpha: weight of the squared distance, which is summed over the pixels and channels of each
        map and averaged over images. It is the authors' constant, so that the loss grows with the
        maps as theirs does.
      divisors: the divisor of each map's part. The default is the authors', for four stages and
        ASPP.
    """

    student = teacher = ("stage1", "stage2", "stage3", "stage4", "head")
    adapter = "always"
    adapter_norm = True
    alpha: Annotated[float, NOT_NEGATIVE] = 1e-5
    divisors: Annotated[tuple[float, ...], POSITIVE] = (8.0, 4.0, 2.0, 1.0, 1.0)

    def check(self, student: tuple[Spec, ...], teacher: tuple[Spec, ...]) -> None:
        if not isinstance(student, tuple) or len(student) != len(self.divisors):
            raise ValueError(
                f"reads a map for each of its {len(self.divisors)} divisors: name as many, in a "
                "tuple"
            )

    def init_state(self, student: tuple[Spec, ...], teacher: tuple[Spec, ...]) -> dict[str, Margin]:
        named = zip(self.names("teacher"), teacher, strict=True)
        return {
            name: Margin(jnp.zeros(spec.channels), jnp.zeros(spec.channels)) for name, spec in named
        }

    def update(self, state: dict[str, Margin], inputs: Inputs) -> dict[str, Margin]:
        def with_map(margin: Margin, x: Float[Array, "B h w C"]) -> Margin:
            x = jnp.minimum(x.astype(jnp.float32), 0.0)
            below = jnp.sum(x < 0, (0, 1, 2)).astype(jnp.float32)
            seen = margin.seen + below
            moved = jnp.sum(x, (0, 1, 2)) - below * margin.mean
            return Margin(margin.mean + moved / jnp.maximum(seen, 1.0), seen)

        found = zip(self.names("teacher"), inputs.teacher, strict=True)
        return {name: with_map(state[name], x) for name, x in found}

    def __call__(
        self, inputs: Inputs, params: PyTree, state: dict[str, Margin]
    ) -> tuple[Float[Array, ""], Metrics]:
        distances, total = {}, jnp.zeros(())
        for divisor, name, mine, other in zip(
            self.divisors, self.names("teacher"), inputs.student, inputs.teacher, strict=True
        ):
            student = mine.astype(jnp.float32)
            teacher = jax.lax.stop_gradient(other).astype(jnp.float32)
            target = jnp.maximum(teacher, state[name].mean)
            counted = (student > target) | (target > 0)
            distances[name] = jnp.mean(jnp.where(counted, jnp.square(student - target), 0.0))
            total += self.alpha * math.prod(other.shape[1:]) / divisor * distances[name]
        return total, distances


METHODS = {"ofd": {"ofd": term("ofd")}}
