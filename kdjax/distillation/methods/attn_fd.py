"""AttnFD as a term."""

from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from kdjax.distillation.feature_maps import Spec
from kdjax.distillation.layers import (
    Params,
    adapt,
    batch_norm,
    convolve,
    init_adapter,
    init_convolution,
    to_length_one,
)
from kdjax.distillation.loss import Inputs, Loss, Metrics
from kdjax.distillation.terms import term
from kdjax.utils.schema import COUNT


class AttnFD(Loss):
    """Attention-guided feature distillation: Mansourian et al. 2024, our clean reading.

    The loss is the squared distance of refined features, scaled to length 1 for each image and
    summed over the maps. A learned CBAM and a 1x1 convolution with batch norm refine the student's
    features. A CBAM without parameters refines the teacher's. The authors' code has this CBAM, but
    their networks use one with random parameters (docs/methods/attn_fd.md). Their weight is 2 on a
    distance that is divided once more by 6, the images of their batch.

    Attributes:
      reduction: the divisor of the channels inside the CBAM.
    """

    student = teacher = ("stage4", "head")
    weight = 0.33
    adapter = "never"
    reduction: Annotated[int, COUNT] = 16

    def check(self, student: tuple[Spec, ...], teacher: tuple[Spec, ...]) -> None:
        if not isinstance(student, tuple) or not isinstance(teacher, tuple):
            raise ValueError('reads several maps a side: name them in a tuple, as ("head",)')

    def init_params(
        self, key: PRNGKeyArray, student: tuple[Spec, ...], teacher: tuple[Spec, ...]
    ) -> list[dict[str, Params]]:
        def of_map(key: PRNGKeyArray, channels: int, wanted: int) -> dict[str, Params]:
            squeeze, expand, spatial, connector = jax.random.split(key, 4)
            hidden = max(channels // self.reduction, 1)
            # The batch norm that follows would remove a bias.
            kernel = init_convolution(spatial, 7, 2, 1)["kernel"]
            return {
                "squeeze": init_convolution(squeeze, 1, channels, hidden),
                "expand": init_convolution(expand, 1, hidden, channels),
                "spatial": {"kernel": kernel, "scale": jnp.ones(1), "shift": jnp.zeros(1)},
                "connector": init_adapter(connector, channels, wanted, norm=True),
            }

        return [
            of_map(jax.random.fold_in(key, index), mine.channels, other.channels)
            for index, (mine, other) in enumerate(zip(student, teacher, strict=True))
        ]

    def __call__(
        self, inputs: Inputs, params: list[dict[str, Params]], state: PyTree
    ) -> tuple[Float[Array, ""], Metrics]:
        distances = {}
        for name, learned, mine, other in zip(
            self.names("student"), params, inputs.student, inputs.teacher, strict=True
        ):
            student = adapt(learned["connector"], _attend(mine, learned))
            teacher = _attend(jax.lax.stop_gradient(other))
            difference = to_length_one(student, (1, 2, 3)) - to_length_one(teacher, (1, 2, 3))
            distances[name] = jnp.mean(jnp.sum(jnp.square(difference), (1, 2, 3)))
        return sum(distances.values(), jnp.zeros(())), distances


def _attend(
    x: Float[Array, "B h w C"], params: dict[str, Params] | None = None
) -> Float[Array, "B h w C"]:
    """Applies CBAM: a gate for each channel, then one for each pixel.

    Without parameters, the gates are the sigmoid of the sum of maximum and mean.
    """

    def pooled(x: Array, axes: int | tuple[int, ...]) -> tuple[Array, Array]:
        return jnp.max(x, axes, keepdims=True), jnp.mean(x, axes, keepdims=True)

    largest, mean = pooled(x, (1, 2))
    if params is not None:
        squeeze, expand = params["squeeze"], params["expand"]
        largest, mean = (
            convolve(expand, jax.nn.relu(convolve(squeeze, side))) for side in (largest, mean)
        )
    x = x * jax.nn.sigmoid(largest + mean)
    largest, mean = pooled(x, -1)
    gate = largest + mean
    if params is not None:
        spatial = params["spatial"]
        gate = batch_norm(spatial, convolve(spatial, jnp.concatenate((largest, mean), -1)))
    return x * jax.nn.sigmoid(gate)


METHODS = {"attn_fd": {"attn_fd": term("attn_fd")}}
