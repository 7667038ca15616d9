"""CanKD as a term."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from kdjax import losses
from kdjax.distillation.feature_maps import Spec
from kdjax.distillation.layers import Params, batch_norm, convolve, init_convolution
from kdjax.distillation.loss import Inputs, Loss
from kdjax.distillation.terms import term


class CanKD(Loss):
    """Cross-attention from the student's pixels to the teacher's: Sun and Ohyama 2026.

    Each pixel of the student adds what it finds in the whole map of the teacher, weighted by
    learned similarities. The loss is the squared distance between the result and the teacher's
    map, after instance norm of both. The weight is that of the paper, whose code has 10 on half of
    the distance.
    """

    student = teacher = "stage4"
    weight = 5.0
    adapter_bias = True

    def init_params(self, key: PRNGKeyArray, student: Spec, teacher: Spec) -> dict[str, Params]:
        channels = teacher.channels
        hidden = max(channels // 2, 1)
        names = ("query", "key", "value")
        *keys, last = jax.random.split(key, len(names) + 1)
        convolutions = {
            name: init_convolution(part, 1, channels, hidden)
            for name, part in zip(names, keys, strict=True)
        }
        # Instance norm would remove a bias and a shift. With a scale of 0, as in the authors' code,
        # training begins without attention.
        kernel = init_convolution(last, 1, hidden, channels)["kernel"]
        return convolutions | {"output": {"kernel": kernel, "scale": jnp.zeros(channels)}}

    def __call__(
        self, inputs: Inputs, params: dict[str, Params], state: PyTree
    ) -> Float[Array, ""]:
        height, width = inputs.teacher.shape[1:3]
        if min(height, width) < 2:
            raise ValueError(f"takes maps of 2 x 2 or more, got {height} x {width}")
        attended = _attend(params, inputs.student, jax.lax.stop_gradient(inputs.teacher))
        return jnp.mean(losses.nfd(inputs.student + attended, inputs.teacher))


def _attend(
    params: dict[str, Params], student: Float[Array, "B h w C"], teacher: Float[Array, "B h w C"]
) -> Float[Array, "B h w C"]:
    """Returns for each pixel of the student a sum over the teacher's pixels.

    The authors' similarities are plain products, divided by the number of pixels. Without a softmax
    the products are associative: `(query key^T) value` is `query (key^T value)`, and no table of
    all pairs of pixels is computed.
    """
    query = convolve(params["query"], student)
    keys, values = (_halved(convolve(params[name], teacher)) for name in ("key", "value"))
    pixels = keys.shape[1] * keys.shape[2]
    einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    context = einsum("bijk,bijv->bkv", keys, values) / pixels
    found = einsum("bijk,bkv->bijv", query, context)
    scale = params["output"]["scale"]
    norm = {"scale": scale, "shift": jnp.zeros_like(scale)}
    return batch_norm(norm, convolve(params["output"], found))


def _halved(x: Float[Array, "B h w C"]) -> Float[Array, "B i j C"]:
    """Returns the maxima of 2 x 2 pixels. A last odd row or column is left out."""
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


METHODS = {"cankd": {"cankd": term("cankd")}}
