"""Losses with an optimizer of their own: SKD's discriminator, and MasKD's tokens.

What they train is their state, and a step of its training an update of that state. So the student's
optimizer does not touch it, checkpoints have it, and no gradient of the student's loss reaches it.
The two optimizers are written out, since this room needs JAX alone and not Optax.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from kdjax import losses
from kdjax.distillation.loss import Inputs, Loss, Metrics, labelled, need_scores
from kdjax.distillation.maps import Spec, batch_norm, convolve, init_convolution

_BETAS = (0.9, 0.99)
_EPSILON = 1e-7  # 1e-8 for the authors, whose loss has a weight of 0.1
_PENALTY = 10.0


class Discriminator(NamedTuple):
    """What tells the teacher's scores from the student's, and its training.

    Attributes:
      judge: its parameters, by which the student is judged in this step.
      trained: the same after this step; the next one's judge.
      directions: of each halving convolution's outputs, that of the largest singular value, nearly.
      moments: Adam's, of first and second order, each shaped as the parameters.
      steps: of its training.
      loss: its own, in this step.
    """

    judge: PyTree
    trained: PyTree
    directions: list[Float[Array, " D"]]
    moments: tuple[PyTree, PyTree]
    steps: Int[Array, ""]
    loss: Float[Array, ""]


class Holistic(Loss):
    """The adversarial term of SKD: Liu et al. 2019, in the form and with the weight of CIRKD.

    A discriminator learns to tell the teacher's class scores from the student's, and the student to
    be taken for the teacher. It is trained after the student's step, on the maps of that step, by
    Adam. Its convolutions have spectral norm, and self-attention follows the last two that halve
    the map.

    Attributes:
      channels: of its halving convolutions; n of them take maps of 4 2^n rows and columns or more.
      objective: what it is trained with: "hinge", or "wgan_gp", the mean difference with a penalty
        on gradients, as SKD and IFVD.
      discriminator_rate: its learning rate.
      discriminator_decay: the power of its poly decay; 0.9 in SKD and IFVD.
    """

    weight: float = 0.001
    adapter: str = "never"
    channels: tuple[int, ...] = (64, 128, 256, 512)
    objective: Literal["hinge", "wgan_gp"] = "hinge"
    discriminator_rate: float = 4e-4
    discriminator_decay: float = 0.0

    def check(self, student: Spec, teacher: Spec) -> None:
        need_scores(student, teacher)
        if self.objective not in ("hinge", "wgan_gp"):
            raise ValueError(f'objective must be "hinge" or "wgan_gp", got "{self.objective}"')
        if any(not isinstance(count, int) or count < 1 for count in self.channels):
            raise ValueError(f"channels must be positive whole numbers, got {self.channels}")
        for key in ("discriminator_rate", "discriminator_decay"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ValueError(f"{key} must be 0 or a positive number, got {getattr(self, key)}")

    def init_state(self, student: Spec, teacher: Spec) -> Discriminator:
        # The same in every run: neither the student's weights nor the images are.
        return jax.jit(self._begin, static_argnums=1)(jax.random.key(0), student.channels)

    def _begin(self, key: PRNGKeyArray, classes: int) -> Discriminator:
        judge = _init_discriminator(key, classes, self.channels)
        directions = [_length_one(jnp.ones(count)) for count in self.channels]
        zeros = jax.tree.map(jnp.zeros_like, judge)
        steps, loss = jnp.zeros((), jnp.int32), jnp.zeros(())
        return Discriminator(judge, judge, directions, (zeros, zeros), steps, loss)

    def update(self, state: Discriminator, inputs: Inputs) -> Discriminator:
        self._check_size(inputs.student.shape[1:3])
        judge, steps = state.trained, state.steps + 1
        directions = [
            _iterate(layer["kernel"], direction)
            for layer, direction in zip(judge["layers"], state.directions, strict=True)
        ]
        loss, gradients = jax.value_and_grad(self._mistaken)(judge, directions, inputs)
        rate = self.discriminator_rate * (1 - inputs.progress) ** self.discriminator_decay
        moments = tuple(
            jax.tree.map(
                lambda old, g, b=beta, n=power: b * old + (1 - b) * g**n, moment, gradients
            )
            for power, (beta, moment) in enumerate(zip(_BETAS, state.moments, strict=True), start=1)
        )
        first, second = (1 - beta ** steps.astype(jnp.float32) for beta in _BETAS)
        trained = jax.tree.map(
            lambda p, m, v: p - rate * (m / first) / (jnp.sqrt(v / second) + _EPSILON),
            judge,
            *moments,
        )
        return Discriminator(judge, trained, directions, moments, steps, loss)

    def __call__(
        self, inputs: Inputs, params: PyTree, state: Discriminator
    ) -> tuple[Float[Array, ""], Metrics]:
        found = _judge(state.judge, state.directions, inputs.student)
        return -jnp.mean(found), {"discriminator": state.loss}

    def _mistaken(self, judge: PyTree, directions: list[Array], inputs: Inputs) -> Float[Array, ""]:
        """How little the discriminator tells the two apart."""

        def score(x: Float[Array, "B h w K"]) -> Float[Array, "B i j 1"]:
            return _judge(judge, directions, x)

        # Each by its own batch norm, as there.
        student, teacher = score(inputs.student), score(inputs.teacher)
        if self.objective == "hinge":
            return jnp.mean(jax.nn.relu(1 - teacher)) + jnp.mean(jax.nn.relu(1 + student))
        penalty = _gradient_penalty(score, inputs.student, inputs.teacher, inputs.key)
        return jnp.mean(student) - jnp.mean(teacher) + _PENALTY * penalty

    def _check_size(self, size: tuple[int, ...]) -> None:
        least = 4 * 2 ** len(self.channels)
        if min(size) < least:
            raise ValueError(
                f"the discriminator takes class scores of {least} x {least} or more, got "
                f"{size[0]} x {size[1]}: train on larger crops, leave the term out, or give it "
                f"fewer channels than the {len(self.channels)} of {self.channels}, each of which "
                "halves the map"
            )


def _init_discriminator(key: PRNGKeyArray, classes: int, channels: tuple[int, ...]) -> PyTree:
    layers, before = [], classes
    for index, after in enumerate(channels):
        kernel, *parts = jax.random.split(jax.random.fold_in(key, index), 4)
        layer: PyTree = init_convolution(kernel, 4, before, after)
        if index >= len(channels) - 2:
            sizes = {"query": max(after // 8, 1), "key": max(after // 8, 1), "value": after}
            layer["attention"] = {
                name: init_convolution(part, 1, after, size)
                for part, (name, size) in zip(parts, sizes.items(), strict=True)
            } | {"gamma": jnp.zeros(())}
            # The softmax takes it out, and Adam would make its rounding a random walk.
            del layer["attention"]["key"]["bias"]
        layers.append(layer)
        before = after
    last = init_convolution(jax.random.fold_in(key, len(channels)), 4, before, 1)
    return {
        "norm": {"scale": jnp.ones(classes), "shift": jnp.zeros(classes)},
        "layers": layers,
        "last": last,
    }


def _judge(
    params: PyTree, directions: list[Array], x: Float[Array, "B h w K"]
) -> Float[Array, "B i j 1"]:
    """High for what is taken for the teacher's."""
    x = batch_norm(params["norm"], x.astype(jnp.float32))
    for layer, direction in zip(params["layers"], directions, strict=True):
        kernel = layer["kernel"]
        largest = jnp.linalg.norm(kernel.reshape(-1, len(direction)) @ direction)
        convolution = {"kernel": kernel / largest, "bias": layer["bias"]}
        x = convolve(convolution, x, stride=2, padding=((1, 1), (1, 1)))
        x = jax.nn.leaky_relu(x, 0.1)
        if "attention" in layer:
            x = _attend(layer["attention"], x)
    return convolve(params["last"], x, padding="VALID")


def _attend(params: PyTree, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
    query, key, value = (
        convolve(params[name], x).reshape(len(x), x.shape[1] * x.shape[2], -1)
        for name in ("query", "key", "value")
    )
    shares = jax.nn.softmax(query @ jnp.swapaxes(key, 1, 2))
    return x + params["gamma"] * (shares @ value).reshape(x.shape)


def _iterate(kernel: Float[Array, "h w C D"], direction: Float[Array, " D"]) -> Float[Array, " D"]:
    """A step of the power iteration towards the largest singular value."""
    matrix = kernel.reshape(-1, len(direction))
    return _length_one(matrix.T @ _length_one(matrix @ direction))


def _length_one(x: Float[Array, " D"]) -> Float[Array, " D"]:
    return x / jnp.maximum(jnp.linalg.norm(x), 1e-12)


def _gradient_penalty(
    score: Callable[[Float[Array, "B h w K"]], Float[Array, "B i j 1"]],
    student: Float[Array, "B h w K"],
    teacher: Float[Array, "B h w K"],
    key: PRNGKeyArray,
) -> Float[Array, ""]:
    """How far from 1 the slope is, at a random point between the two maps of each image."""
    share = jax.random.uniform(key, (len(student), 1, 1, 1))
    between = share * teacher + (1 - share) * student
    slopes = jax.grad(lambda x: jnp.sum(score(x)))(between)
    square = jnp.sum(jnp.square(slopes), (1, 2, 3))
    # The root of 0 has no slope of its own.
    length = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
    return jnp.mean(jnp.square(length - 1))


class Tokens(NamedTuple):
    """MasKD's receptive tokens, and their fitting.

    Attributes:
      tokens: [T, K]; the sigmoid of their products with the teacher's scores are the masks.
      momentum: of SGD [T, K].
      loss: the last of their fitting.
    """

    tokens: Float[Array, "T K"]
    momentum: Float[Array, "T K"]
    loss: Float[Array, ""]


class MasKD(Loss):
    """Squared distance of class scores under masks that the teacher has learned: Huang et al. 2023.

    In the first part of the run it is 0, and fits the tokens that make the masks, by the labels:
    the teacher's masked scores are to be right, and the masks different. They stay from then on.

    Attributes:
      count: of tokens.
      fitted_until: the share of the run in which they are fitted; the authors have 10000 steps
        before theirs of 40000.
      token_rate: the learning rate of SGD at its beginning.
    """

    adapter: str = "never"
    count: int = 8
    fitted_until: float = 0.05
    token_rate: float = 0.1

    def check(self, student: Spec, teacher: Spec) -> None:
        need_scores(student, teacher)
        if self.count < 1:
            raise ValueError(f"count must be 1 or more, got {self.count}")
        if not 0 < self.fitted_until < 1:
            raise ValueError(f"fitted_until is a share, between 0 and 1, got {self.fitted_until}")
        if not 0 <= self.token_rate < math.inf:
            raise ValueError(f"token_rate must be 0 or a positive number, got {self.token_rate}")

    def init_state(self, student: Spec, teacher: Spec) -> Tokens:
        tokens = 0.01 * jax.random.normal(jax.random.key(0), (self.count, teacher.channels))
        return Tokens(tokens, jnp.zeros_like(tokens), jnp.zeros(()))

    def update(self, state: Tokens, inputs: Inputs) -> Tokens:
        labelled(inputs)
        labels, teacher = inputs.full_labels, inputs.teacher.astype(jnp.float32)
        assert labels is not None  # labelled() saw them

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
    """Dice of any two masks of an image, 0 to 1; 0 of a single one."""
    count = masks.shape[-1]
    flat = masks.reshape(len(masks), -1, count)
    products = jnp.einsum("bps,bpt->bst", flat, flat)
    squares = jnp.diagonal(products, axis1=1, axis2=2)
    dice = 2 * products / (squares[:, :, None] + squares[:, None] + 2e-12)
    others = dice * (1 - jnp.eye(count))
    return jnp.sum(others) / max(len(masks) * count * (count - 1), 1)
