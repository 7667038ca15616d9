"""MGD as a term."""

import math
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from kdjax import losses
from kdjax.distillation.feature_maps import Spec
from kdjax.distillation.layers import Params, convolve, init_convolution
from kdjax.distillation.loss import Inputs, Loss
from kdjax.distillation.terms import term
from kdjax.utils.schema import NOT_NEGATIVE, SHARE


class Generated(Loss):
    """A loss between the teacher's map and a map generated from the student's masked map.

    The generator is two 3x3 convolutions, drawn as PyTorch draws them. They have 18 C^2 weights for
    the C channels of the teacher, often more than the student.

    Attributes:
      alpha: weight of the squared distance, which is summed over pixels and channels and averaged
        over images. It is the authors' constant, so that the loss grows with the map as theirs
        does.
      masked: share of the student's map that is set to 0.
      mask: the masked part: random pixels, random channels, or the center of the map.
    """

    student = teacher = "stage4"
    adapter_bias = True
    alpha: Annotated[float, NOT_NEGATIVE] = 2e-5
    masked: Annotated[float, SHARE] = 0.75
    mask: Literal["pixels", "channels", "centre"] = "pixels"

    def init_params(self, key: PRNGKeyArray, student: Spec, teacher: Spec) -> dict[str, Params]:
        first, second = jax.random.split(key)
        return {
            "first": init_convolution(first, 3, student.channels, teacher.channels),
            "second": init_convolution(second, 3, teacher.channels, teacher.channels),
        }

    def generate(self, inputs: Inputs, params: PyTree) -> Float[Array, "B h w C"]:
        """Returns the teacher's map, generated from the unmasked part of the student's map."""
        x = jnp.where(self._kept(inputs), inputs.student, 0)
        return convolve(params["second"], jax.nn.relu(convolve(params["first"], x)))

    def imitation(
        self, generated: Float[Array, "B h w C"], inputs: Inputs
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Returns the weighted distance of a generated map, and its mean square."""
        distance = jnp.mean(losses.l2(generated, inputs.teacher))
        return self.alpha * math.prod(inputs.teacher.shape[1:]) * distance, distance

    def _kept(self, inputs: Inputs) -> Array:
        images, height, width, channels = inputs.student.shape
        if self.mask == "centre":
            rows, columns = (
                (at >= size // 3) & (at < 2 * size // 3)
                for at, size in ((jnp.arange(height), height), (jnp.arange(width), width))
            )
            return ~(rows[:, None] & columns)[:, :, None]
        pixels = self.mask == "pixels"
        shape = (images, height, width, 1) if pixels else (images, 1, 1, channels)
        return jax.random.bernoulli(inputs.key, 1 - self.masked, shape)


class MGD(Generated):
    """Masked generative distillation: Yang et al. 2022.

    `alpha` is the authors' weight on a sum. `mask="channels"` is mmrazor's option for classifiers.
    """

    def __call__(self, inputs: Inputs, params: PyTree, state: PyTree) -> Float[Array, ""]:
        return self.imitation(self.generate(inputs, params), inputs)[0]


# The authors' two published configs also have CWD on the class scores.
METHODS = {"mgd": {"mgd": term("mgd"), "cwd": term("cwd")}}
BUILDS_ON = {"mgd": "cwd"}
