"""L2 of standardized features as a term: PHI-S, or each channel by itself."""

from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from kdjax import losses
from kdjax.distillation.feature_maps import Spec
from kdjax.distillation.loss import Inputs, Loss
from kdjax.distillation.terms import term
from kdjax.losses import ClassStatistics
from kdjax.utils.schema import COUNT


class Standard(NamedTuple):
    """The map that standardizes features: `(x - mean) * scale`, or `(x - mean) @ scale`.

    Attributes:
      statistics: the statistics of the features so far, as one class.
      mean: `[D]`.
      scale: `[D]`, or a matrix `[D, D]`.
    """

    statistics: ClassStatistics
    mean: Float[Array, " D"]
    scale: Float[Array, "D"] | Float[Array, "D D"]


class StandardizedL2(Loss):
    """Squared distance from the teacher's features at a variance of 1: Ranzinger et al. 2024.

    In the first steps the loss is 0 and collects statistics of the teacher's features. After that,
    the features are standardized by these statistics. The weight is ours: values are about 1
    whatever the teacher.

    Attributes:
      standardize: "phi_s" rotates the features and scales all directions alike; "channel" scales
        each channel by itself.
      fitted_over: the number of steps that collect statistics. A run needs more steps than that.
    """

    student = teacher = "head"
    adapter = "always"
    standardize: Literal["phi_s", "channel"] = "phi_s"
    fitted_over: Annotated[int, COUNT] = 50

    def check_steps(self, steps: int) -> None:
        if steps <= self.fitted_over:
            raise ValueError(
                f"is 0 in its first {self.fitted_over} steps (fitted_over), and the run has "
                f"{steps}; lower fitted_over or raise config.steps"
            )

    def init_state(self, student: Spec, teacher: Spec) -> Standard:
        whole, channels = self.standardize == "phi_s", teacher.channels
        statistics = ClassStatistics.zeros(1, channels, full=whole)
        scale = jnp.eye(channels) if whole else jnp.ones(channels)
        return Standard(statistics, jnp.zeros(channels), scale)

    def update(self, state: Standard, inputs: Inputs) -> Standard:
        def collect(statistics: ClassStatistics) -> ClassStatistics:
            one_class = jnp.zeros(inputs.teacher.shape[:-1], jnp.int32)
            return statistics.update(inputs.teacher, one_class)

        def fit(statistics: ClassStatistics) -> Standard:
            covariance = statistics.covariance[0]
            if self.standardize == "phi_s":
                scale = losses.phi_s(covariance)
            else:
                scale = jnp.where(covariance > 0, covariance, 1.0) ** -0.5
            return Standard(statistics, statistics.mean[0], scale)

        collects = inputs.step < self.fitted_over
        statistics = jax.lax.cond(collects, collect, lambda same: same, state.statistics)
        last = inputs.step == self.fitted_over - 1
        return jax.lax.cond(last, fit, lambda same: Standard(same, *state[1:]), statistics)

    def __call__(self, inputs: Inputs, params: PyTree, state: Standard) -> Float[Array, ""]:
        centered = jax.lax.stop_gradient(inputs.teacher).astype(jnp.float32) - state.mean
        if state.scale.ndim == 2:
            target = jnp.matmul(centered, state.scale, precision=jax.lax.Precision.HIGHEST)
        else:
            target = centered * state.scale
        value = jnp.mean(losses.l2(inputs.student, target))
        return jnp.where(inputs.step < self.fitted_over, 0.0, value)


METHODS = {"phi_s": {"standardized_l2": term("standardized_l2")}}
BUILDS_ON = {"phi_s": "l2"}
