"""NFD as a term."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from kdjax import losses
from kdjax.distillation.loss import Inputs, Loss, Metrics
from kdjax.distillation.terms import term


class NFD(Loss):
    """Normalized feature distillation: Liu et al. 2022, our reading.

    The authors' weight is unknown. Other code gives a plain distance a weight of 1 to 10.
    """

    student = teacher = "head"
    weight = 3.0
    axes: Literal["space", "batch_space", "channel", "all"] = "space"
    eps: float = 1e-5

    def __call__(
        self, inputs: Inputs, params: PyTree, state: PyTree
    ) -> tuple[Float[Array, ""], Metrics]:
        options = {"axes": self.axes, "eps": self.eps}
        # The share of the channels that do not vary.
        dead = {
            f"dead_{side}_channels": jnp.mean(losses.dead_channels(features, **options))
            for side, features in (("student", inputs.student), ("teacher", inputs.teacher))
        }
        return jnp.mean(losses.nfd(inputs.student, inputs.teacher, **options)), dead


METHODS = {"nfd": {"nfd": term("nfd")}}
