"""MasKD as a term.

The tokens are state of the term, and each step of their training is an update of the state. SGD is
written out, because this package uses only JAX.
"""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from kdjax import losses
from kdjax.distillation.feature_maps import Spec
from kdjax.distillation.loss import Inputs, Metrics, ScoreLoss, read_labels
from kdjax.distillation.terms import term
from kdjax.utils.schema import COUNT, NOT_NEGATIVE, Range


class Tokens(NamedTuple):
    """MasKD's receptive tokens, and the state of their training.

    Attributes:
      tokens: `[T, K]`. The masks are the sigmoid of their products with the teacher's scores.
      momentum: the momentum of SGD, `[T, K]`.
      loss: the loss of the tokens in their last training step.
    """

    tokens: Float[Array, "T K"]
    momentum: Float[Array, "T K"]
    loss: Float[Array, ""]


class MasKD(ScoreLoss):
    """Squared distance of class scores under masks that the teacher has learned: Huang et al. 2023.

    In the first part of the run, the loss is 0 and the labels train the tokens that make the masks:
    the teacher's masked scores should be right, and the masks different. After that, the tokens
    stay the same.

    Attributes:
      count: the number of tokens.
      fitted_until: the share of the run in which the tokens are trained. The authors train them in
        10000 steps before the run of 40000 steps.
      token_rate: the initial learning rate of SGD.
    """

    adapter = "never"
    count: Annotated[int, COUNT] = 8
    fitted_until: Annotated[float, Range("between 0 and 1", lambda x: 0 < x < 1)] = 0.05
    token_rate: Annotated[float, NOT_NEGATIVE] = 0.1

    def init_state(self, student: Spec, teacher: Spec) -> Tokens:
        tokens = 0.01 * jax.random.normal(jax.random.key(0), (self.count, teacher.channels))
        return Tokens(tokens, jnp.zeros_like(tokens), jnp.zeros(()))

    def update(self, state: Tokens, inputs: Inputs) -> Tokens:
        read_labels(inputs)
        labels, teacher = inputs.full_labels, inputs.teacher.astype(jnp.float32)
        assert labels is not None  # read_labels() requires them

        def objective(tokens: Float[Array, "T K"]) -> Float[Array, ""]:
            masks = _masks(tokens, teacher)
            scores = teacher * jnp.sum(masks, -1, keepdims=True)
            values = losses.upsampled_cross_entropy(
                scores, labels, ignore_label=inputs.ignore_label, align_corners=True
            )
            return losses.valid_mean(values, labels != inputs.ignore_label) + _overlap(masks)

        def fit(state: Tokens) -> Tokens:
            loss, gradient = jax.value_and_grad(objective)(state.tokens)
            rate = self.token_rate * (1 - inputs.progress / self.fitted_until) ** 0.9
            momentum = 0.9 * state.momentum + gradient + 1e-3 * state.tokens
            return Tokens(state.tokens - rate * momentum, momentum, loss)

        return jax.lax.cond(self._fits(inputs), fit, lambda same: same, state)

    def __call__(
        self, inputs: Inputs, params: PyTree, state: Tokens
    ) -> tuple[Float[Array, ""], Metrics]:
        student = inputs.student.astype(jnp.float32)
        teacher = jax.lax.stop_gradient(inputs.teacher).astype(jnp.float32)
        masks = _masks(state.tokens, teacher)
        square = jnp.square(student - teacher)
        apart = jnp.einsum(
            "bhwt,bhwk->btk", jnp.square(masks), square, precision=jax.lax.Precision.HIGHEST
        )
        value = jnp.mean(apart / (jnp.sum(masks, (1, 2)) + 1e-5)[..., None]) / 2
        return jnp.where(self._fits(inputs), 0.0, value), {
            "mask_share": jnp.mean(masks),
            "fitting": state.loss,
        }

    def _fits(self, inputs: Inputs) -> Array:
        return inputs.progress < self.fitted_until


def _masks(tokens: Float[Array, "T K"], scores: Float[Array, "B h w K"]) -> Float[Array, "B h w T"]:
    return jax.nn.sigmoid(jnp.matmul(scores, tokens.T, precision=jax.lax.Precision.HIGHEST))


def _overlap(masks: Float[Array, "B h w T"]) -> Float[Array, ""]:
    """Returns the mean Dice score of two masks of an image, 0 to 1. It is 0 for a single mask."""
    count = masks.shape[-1]
    flat = masks.reshape(len(masks), -1, count)
    products = jnp.einsum("bps,bpt->bst", flat, flat)
    squares = jnp.diagonal(products, axis1=1, axis2=2)
    dice = 2 * products / (squares[:, :, None] + squares[:, None] + 2e-12)
    others = dice * (1 - jnp.eye(count))
    return jnp.sum(others) / max(len(masks) * count * (count - 1), 1)


METHODS = {"mas_kd": {"mas_kd": term("mas_kd")}}
